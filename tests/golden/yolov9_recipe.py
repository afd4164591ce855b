"""Weights, images and targets drawn from text labels, and checksums of tensors.

The values are part of the golden files: recipe "memplan-parity-v1", seed 0, as `recipe_text` in
yolov9_parity.json describes it. torch.rand is exact, so they do not depend on the machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent


def golden(name):
    """Return the content of a golden file of this folder."""
    return json.loads((_FOLDER / name).read_text(encoding="utf-8"))


def uniform(label, shape, low=0.0, high=1.0):
    """Return float32 values in [low, high) that follow from the label alone."""
    generator = torch.Generator("cpu")
    generator.manual_seed(zlib.crc32(f"memplan-parity-v1|0|{label}".encode()))
    values = torch.rand(math.prod(shape), generator=generator, dtype=torch.float32)
    return (values * (high - low) + low).reshape(tuple(shape))


def state_for(net):
    """Return a state_dict for a network, every entry drawn from its own name."""
    return {k: _entry(k, v) for k, v in net.state_dict().items()}


def _entry(key, like):
    *parents, leaf = key.split(".")
    shape = tuple(like.shape)
    if any(p in {"dfl", "dfl2", "dfl3"} for p in parents):
        return torch.arange(like.numel(), dtype=torch.float32).reshape(shape)
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=like.dtype)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        low, high = 0.5, 1.5
    elif leaf == "weight":
        high = math.sqrt(3.0 / math.prod(shape[1:]))
        low = -high
    else:
        low, high = -0.1, 0.1
    return uniform(f"state|{key}", shape, low, high)


def image(batch, height, width):
    """Return images `[B, 3, H, W]`: blocks of 32 pixels with noise."""
    size = f"{batch}x3x{height}x{width}"
    noise = uniform(f"image|noise|{size}", (batch, 3, height, width))
    block = uniform(f"image|block|{size}", (batch, 3, height // 32, width // 32))
    return noise * 0.25 + block.repeat_interleave(32, 2).repeat_interleave(32, 3) * 0.75


def targets(name, boxes_per_image, nc, low=0.2, high=0.6):
    """Return rows `[n, 6]`; sizes are in [low, high) of the image side, boxes inside the image."""
    rows = []
    for index, count in enumerate(boxes_per_image):
        for u in uniform(f"targets|{name}|{index}|{count}", (count, 5)).tolist():
            w, h = low + (high - low) * u[0], low + (high - low) * u[1]
            x, y = w / 2 + (1 - w) * u[2], h / 2 + (1 - h) * u[3]
            rows.append([float(index), float(min(int(u[4] * nc), nc - 1)), x, y, w, h])
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def raw_maps(name, batch, channels, height, width):
    """Return raw maps of three levels in [-2, 2)."""
    return [
        uniform(f"feats|{name}|{s}", (batch, channels, height // s, width // s), -2.0, 2.0)
        for s in (8, 16, 32)
    ]


def fingerprint(state):
    """Return the hash of all names and shapes, and that of the names alone."""
    rows = sorted([k, list(v.shape)] for k, v in state.items())

    def digest(value):
        return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode("ascii")).hexdigest()

    return digest(rows), digest([row[0] for row in rows])


def named_tensors(nested, prefix):
    """Return {name: tensor} of nested lists and tuples, names such as `train.0.2`."""
    if isinstance(nested, torch.Tensor):
        return {prefix: nested}
    found = {}
    for index, item in enumerate(nested):
        found |= named_tensors(item, f"{prefix}.{index}")
    return found


def differences(name, tensor, want, tolerance):
    """Return what is off by more than `tolerance` of the golden standard deviation.

    `proj` is a dot product with values drawn from the name, so it notices any permutation.
    """
    x = tensor.detach().double().reshape(-1)
    weights = uniform(f"proj|{name}|{x.numel()}", (x.numel(),), -1.0, 1.0).double()
    scale = max(want["std"], 1e-9 * max(want["absmax"], 1e-30))
    first = zip(x.tolist(), want["first"], strict=False)
    off = {
        "mean": abs(float(x.mean()) - want["mean"]) / scale,
        "std": abs(float(x.std(unbiased=False)) - want["std"]) / scale,
        "proj": abs(float(x @ weights) - want["proj"]) / (scale * math.sqrt(x.numel())),
        "first": max(abs(a - b) / scale for a, b in first),
    }
    wrong = {f"{name} {k}": v for k, v in off.items() if not v <= tolerance}
    if list(tensor.shape) != want["shape"]:
        wrong[f"{name} shape"] = list(tensor.shape)
    return wrong


def all_differences(nested, prefix, want, tolerance):
    """Return the differences of every tensor in a nested output, whose structure must be equal."""
    got = named_tensors(nested, prefix)
    assert list(want) == list(got)
    found = {}
    for name, tensor in got.items():
        found |= differences(name, tensor, want[name], tolerance)
    return found
