"""Whose libraries a row ran, and whether they are ours."""

from __future__ import annotations

import re

from memplan.device.cudnn import installed_version

# cuDNN of PyTorch's pip builds for CUDA 12, by torch release. Source: `Requires-Dist` of the
# wheels' metadata (nvidia-cudnn-cu12).
_CUDNN_OF_TORCH = {
    (2, 1): "8.9.2", (2, 2): "8.9.2", (2, 3): "8.9.2",
    (2, 4): "9.1.0", (2, 5): "9.1.0", (2, 6): "9.1.0",
    (2, 7): "9.5.1", (2, 8): "9.10.2", (2, 9): "9.10.2",
}  # fmt: skip


def cudnn_of(torch_version: str) -> str:
    """Return the cuDNN that a torch version such as `2.4.0+cu121` brings; empty if not known."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.\d+\+cu12\d", torch_version)
    found = match and _CUDNN_OF_TORCH.get((int(match[1]), int(match[2])))
    return f"{found} (of the torch wheel)" if found else ""


def same_as_ours(torch_version: str, cudnn_version: str) -> str:
    """Return whether both are the installed ones in major and minor: yes, no, or not stated."""
    import torch

    pairs = ((torch_version, str(torch.__version__)), (cudnn_version, installed_version()))
    stated = [(_minor(theirs), _minor(ours)) for theirs, ours in pairs if theirs]
    if any(theirs != ours for theirs, ours in stated):
        return "no"
    return "yes" if len(stated) == len(pairs) else "not stated"


def _minor(version: str) -> str:
    match = re.match(r"\d+(\.\d+)?", version)
    return match[0] if match else version
