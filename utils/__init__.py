"""What a run needs around the model."""
