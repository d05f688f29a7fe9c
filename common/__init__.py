"""The floor below dataset, models and utils: errors, files and a constant. Imports none of the three."""

__version__ = "0.2.0"

IGNORE_LABEL_ID = -100  # label of a token that is not scored, in batches and in the loss, whatever the files use
