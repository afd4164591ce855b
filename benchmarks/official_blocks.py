"""Blocks of model descriptions beside those of a checkout of the official repository.

Every block that a detection description may name stands in a small network of its own, which the
official code and memplan build from the same rows. Entries, parameters and outputs are compared,
with weights and images that `tests/golden/yolov9_recipe.py` draws from text.

    python -m benchmarks.official_blocks PATH
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import click
import torch
from memplan_models.checkout import import_checkout
from memplan_models.yolov9.network import DetectionModel

_GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
WIDTH, DEPTH, CLASSES, SIDE = 0.5, 0.67, 3, 64
_STEM = [
    [-1, 1, "Conv", [32, 3, 2]],
    [-1, 1, "Conv", [32, 3, 2]],
]  # 16 channels each, at half width
# One block's rows, behind the stem; the head reads the last.
ROWS: dict[str, list[Any]] = {
    "Conv, dilated": [[-1, 1, "Conv", [48, 3, 1, None, 1, 2]]],
    "Conv, padding and groups": [[-1, 1, "Conv", [32, 3, 2, 0, 4]]],
    "Conv, no activation": [[-1, 1, "Conv", [32, 3, 1, None, 1, 1, False]]],
    "Conv, kernel of two sides": [[-1, 1, "Conv", [32, [1, 3]]]],
    "DWConv": [[-1, 1, "DWConv", [48, 3, 2]]],
    "DWConv, repeated": [[-1, 3, "DWConv", [32, 3]]],
    "ConvTranspose": [[-1, 1, "ConvTranspose", [48]]],
    "DWConvTranspose2d": [[-1, 1, "DWConvTranspose2d", [32, 4, 2, 1]]],
    "nn.ConvTranspose2d": [[-1, 1, "nn.ConvTranspose2d", [48, 2, 2]]],
    "AConv": [[-1, 1, "AConv", [48]]],
    "ADown": [[-1, 1, "ADown", [48]]],
    "Bottleneck": [[-1, 1, "Bottleneck", [32]]],
    "Bottleneck, repeated": [[-1, 3, "Bottleneck", [32, False, 2]]],
    "BottleneckCSP": [[-1, 3, "BottleneckCSP", [48]]],
    "BottleneckBase": [[-1, 1, "BottleneckBase", [16, 16]]],
    "RBottleneckBase": [[-1, 1, "RBottleneckBase", [16, 16]]],
    "RepNRBottleneckBase": [[-1, 1, "RepNRBottleneckBase", [16, 16]]],
    "RepNBottleneck": [[-1, 2, "RepNBottleneck", [16, 16]]],
    "RepConvN": [[-1, 1, "RepConvN", [16, 16, 3, 2]]],
    "Res": [[-1, 1, "Res", [16, 16]]],
    "RepNRes": [[-1, 1, "RepNRes", [16, 16]]],
    "CSP": [[-1, 1, "CSP", [16, 16, 2]]],
    "RepNCSP": [[-1, 1, "RepNCSP", [16, 16, 2]]],
    "CSPBase": [[-1, 1, "CSPBase", [16, 16, 2]]],
    "ELAN1": [[-1, 1, "ELAN1", [48, 16, 8]]],
    "RepNCSPELAN4": [[-1, 1, "RepNCSPELAN4", [48, 16, 8, 1]]],
    "SPP": [[-1, 1, "SPP", [48]]],
    "SPP, windows": [[-1, 1, "SPP", [48, [3, 5]]]],
    "SPPF": [[-1, 1, "SPPF", [48, 5]]],
    "SPPELAN": [[-1, 1, "SPPELAN", [48, 8]]],
    "SPPCSPC": [[-1, 3, "SPPCSPC", [48]]],
    "ReOrg": [[-1, 1, "ReOrg", []]],
    "Contract": [[-1, 1, "Contract", [2]]],
    "Expand": [[-1, 1, "Expand", [2]]],
    "Concat": [[-1, 1, "Conv", [48, 3]], [[-1, 1], 1, "Concat", [1]]],
    "Shortcut": [[-1, 1, "Conv", [32, 3]], [[-1, 1], 1, "Shortcut", [0]]],
    "ASPP": [[-1, 1, "ASPP", [16, 4]]],
    "Silence": [[-1, 1, "Silence", []]],
    "SP": [[-1, 1, "SP", [5, 1]]],
    "MP": [[-1, 1, "MP", []]],
    "ImplicitA": [[-1, 1, "ImplicitA", [16]]],
    "ImplicitM": [[-1, 1, "ImplicitM", [16]]],
    "MixConv2d": [[-1, 1, "MixConv2d", [16, 16, [1, 3]]]],
    "MixConv2d, equal weights": [[-1, 1, "MixConv2d", [16, 16, [1, 3], 1, False]]],
    "UConv": [[-1, 1, "UConv", [16, 8, 16]]],
    "Proto": [[-1, 1, "Proto", [16, 8, 16]]],
    "CBLinear and CBFuse": [
        [-1, 1, "CBLinear", [[8, 16]]],
        [1, 1, "Conv", [32, 3, 2]],
        [[2, -1], 1, "CBFuse", [[1]]],
    ],
    "nn.BatchNorm2d": [[-1, 1, "nn.BatchNorm2d", []]],
    "nn.Conv2d": [[-1, 1, "nn.Conv2d", [16, 16, 3, 1, 1]]],
    "nn.MaxPool2d": [[-1, 1, "nn.MaxPool2d", [3, 2, 1]]],
    "nn.AvgPool2d": [[-1, 1, "nn.AvgPool2d", [2]]],
    "nn.ZeroPad2d": [
        [-1, 1, "Conv", [32, 3, 1]],
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 1, "Conv", [32, 3, 2, 0]],
    ],
    "nn.Upsample": [[-1, 1, "nn.Upsample", [None, 2, "nearest"]]],
    "nn.Identity and nn.Dropout2d": [[-1, 1, "nn.Identity", []], [-1, 1, "nn.Dropout2d", [0.1]]],
    "nn.PReLU": [[-1, 2, "nn.PReLU", [16]]],
}
HEADS: dict[str, list[Any]] = {
    "Detect": [[[0, 1], 1, "Detect", ["nc"]]],
    "DDetect": [[[0, 1], 1, "DDetect", ["nc"]]],
    "DualDetect": [[[0, 1, 0, 1], 1, "DualDetect", ["nc"]]],
    "DualDDetect": [[[0, 1, 0, 1], 1, "DualDDetect", ["nc"]]],
    "TripleDetect": [[[0, 1, 0, 1, 0, 1], 1, "TripleDetect", ["nc"]]],
    "TripleDDetect": [[[0, 1, 0, 1, 0, 1], 1, "TripleDDetect", ["nc"]]],
}


def description_of(rows: list[Any]) -> dict[str, Any]:
    """Return the description of a network that ends in `rows`."""
    ends = rows[-1][2].endswith("Detect")
    head = rows if ends else [*rows, [[len(_STEM) + len(rows) - 1], 1, "DDetect", ["nc"]]]
    return {
        "nc": CLASSES,
        "depth_multiple": DEPTH,
        "width_multiple": WIDTH,
        "anchors": 3,
        "backbone": copy.deepcopy(_STEM),
        "head": copy.deepcopy(head),
    }


def recipe() -> Any:
    """Return the module that draws weights and images."""
    place = importlib.util.spec_from_file_location("yolov9_recipe", _GOLDEN / "yolov9_recipe.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@torch.no_grad()
def outputs(net: torch.nn.Module, drawn: Any) -> dict[str, torch.Tensor]:
    """Return the maps that a network gives in training mode, its norms in evaluation, float64."""
    net.load_state_dict(drawn.state_for(net))
    net.double().eval()
    net.model[-1].training = True
    return drawn.named_tensors(net(drawn.image(1, SIDE, SIDE).double()), "out")


def facts(tensor: torch.Tensor, name: str, drawn: Any) -> dict[str, Any]:
    """Return what the golden file says of an output; see `yolov9_recipe.differences`."""
    x = tensor.double().reshape(-1)
    weights = drawn.uniform(f"proj|{name}|{x.numel()}", (x.numel(),), -1.0, 1.0).double()
    return {
        "shape": list(tensor.shape),
        "mean": float(x.mean()),
        "std": float(x.std(unbiased=False)),
        "absmax": float(x.abs().max()),
        "proj": float(x @ weights),
        "first": x[:4].tolist(),
    }


@click.command()
@click.argument("checkout", type=click.Path(exists=True, path_type=Path))
@click.option("--golden", type=click.Path(path_type=Path), help="Write what tests pin.")
def main(checkout: Path, golden: Path | None) -> None:
    """Compare, and print a line a block."""
    drawn = recipe()
    official = import_checkout(checkout, ["models.yolo"])["models.yolo"]
    kept = {}
    worst = 0.0
    for name, rows in {**ROWS, **HEADS}.items():
        description = description_of(rows)
        theirs = official.Model(copy.deepcopy(description), ch=3, nc=CLASSES)
        ours = DetectionModel(description)
        strides = (tuple(theirs.model[-1].stride.tolist()), ours.strides)
        close = [math.isclose(a, b, rel_tol=1e-6) for a, b in zip(*strides, strict=True)]
        assert all(close), (name, strides)
        keys = [[k, list(v.shape)] for k, v in theirs.state_dict().items()]
        mine = [[k, list(v.shape)] for k, v in ours.state_dict().items()]
        assert keys == mine, (name, keys, mine)
        expected, found = outputs(theirs, drawn), outputs(ours, drawn)
        off = max(float((expected[key] - found[key]).abs().max()) for key in expected)
        count = sum(p.numel() for p in theirs.parameters())
        worst = max(worst, off)
        click.echo(f"{name:30}{count:8} parameters, largest difference {off:.1e}")
        kept[name] = {
            "rows": rows,
            "strides": list(strides[0]),
            "state": drawn.fingerprint(theirs.state_dict())[0],
            "parameters": count,
            "outputs": {key: facts(one, key, drawn) for key, one in expected.items()},
        }
    click.echo(f"{len(kept)} blocks; largest difference {worst:.1e}")
    if golden is not None:
        golden.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
