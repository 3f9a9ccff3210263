"""Text and image encoders, prompt weighting, and the vocabulary of the built-in model."""
