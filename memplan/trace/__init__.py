"""Records tapes: of a training step on a fake CUDA device, and of PyTorch's own snapshots."""
