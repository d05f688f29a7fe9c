"""The floor that dataset, models and utils stand on: errors, files, a constant. Nothing of them is imported here."""

__version__ = "0.2.0"

IGNORE_LABEL_ID = -100  # label of a token that is not scored, in batches and in the loss, whatever the files use
