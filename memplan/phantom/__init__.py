"""A CUDA runtime that owns no device: PyTorch's own code runs on a card that is not there."""
