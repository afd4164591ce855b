"""Predict, plan and guard the GPU memory of a PyTorch training run."""

from memplan._version import __version__

__all__ = ["__version__"]
