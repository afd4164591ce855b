"""Training scripts as people write them, run unmodified on a phantom card."""
