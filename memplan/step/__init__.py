"""A training step as it runs: what the recorder records is what the trainer runs."""
