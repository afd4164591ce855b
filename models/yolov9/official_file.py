"""Checkpoints that the official code loads: modules pickled under that code's own class names.

Nothing of the official code is imported or run. Its reader makes each object by its class's name
and gives it the attributes that the file holds, so a file needs the names of classes and of their
attributes, and no class itself. `benchmarks/official_parity.py` has the official code load them.

Source: names of classes and attributes as in https://github.com/WongKinYiu/yolov9 at 5b1ea9a,
models/common.py and models/yolo.py, and as found in the checkpoints released there.
"""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from memplan.errors import BadInputError

from . import blocks, heads
from .export_files import Deployed
from .trained import read_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from memplan.workload import ExportOptions

    from .network import DetectionModel

_COMMON, _YOLO = "models.common", "models.yolo"
_NOTHING: Callable[[Any], dict[str, Any]] = lambda _: {}  # noqa: E731 - as the table's others


def _hidden(module: Any) -> dict[str, Any]:
    """Return what blocks that split their first convolution's output keep: its half."""
    return {"c": module.cv1.conv.out_channels // 2}


# What each class has besides parameters, buffers and submodules, whose names are ours too.
_ATTRIBUTES: Mapping[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    blocks.Conv: _NOTHING,
    blocks.AConv: _NOTHING,
    blocks.ADown: lambda m: {"c": m.cv1.conv.out_channels},
    blocks.RepConvN: lambda m: {
        "g": 1,
        "c1": m.conv1.conv.in_channels,
        "c2": m.conv1.conv.out_channels,
        "bn": None,
    },
    blocks.RepNBottleneck: lambda _: {"add": True},
    blocks.RepNCSP: _NOTHING,
    blocks.RepNCSPELAN4: _hidden,
    blocks.ELAN1: _hidden,
    blocks.SP: _NOTHING,
    blocks.MP: _NOTHING,
    blocks.SPPELAN: lambda m: {"c": m.cv1.conv.out_channels},
    blocks.SPPCSPC: _NOTHING,
    blocks.Silence: _NOTHING,
    blocks.Concat: lambda m: {"d": m.d},
    blocks.CBLinear: lambda m: {"c2s": m.c2s},
    blocks.CBFuse: lambda m: {"idx": m.idx},
    heads.DFL: lambda m: {"c1": m.bins},
}
_HEADS = (heads.Detect, heads.DDetect, heads.DualDDetect, heads.TripleDDetect)


def write(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Write what the official training leaves at its end: the model alone, the epoch -1.

    Args:
        path: the file.
        net: with its norms, in evaluation mode.
        class_names: by class number.
        options: not looked at; the writers of all formats take them.

    Raises:
        BadInputError: the network has a block that the official code does not have.
    """
    del options
    content: dict[str, Any] = {
        "epoch": -1,
        "best_fitness": None,
        "model": _model(net, class_names),
        "ema": None,
        "updates": None,
        "optimizer": None,
        "opt": {},
        "date": datetime.now(UTC).isoformat(),
    }
    writer = types.ModuleType("pickle")
    vars(writer).update({**vars(pickle), "Pickler": _Pickler})
    try:
        torch.save(content, path, pickle_module=writer)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(0, str(error).splitlines()[0]) from None


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a file's network, as memplan reads official files."""
    deployed = Deployed(read_trained(path).net).eval()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        found: Tensor = deployed(images)
        return found

    return run


class _Named:
    """An object that is pickled under another class's name, which need not exist here."""


def _named(module: str, name: str, state: dict[str, Any]) -> _Named:
    made: _Named = type(name, (_Named,), {"__module__": module, "__qualname__": name})()
    vars(made).update(state)
    return made


class _Pickler(pickle._Pickler):  # noqa: SLF001 - the one in C imports what it names
    """Writes the names of stand-in classes as they are."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a class's name; that of a stand-in without looking it up."""
        if not (isinstance(obj, type) and issubclass(obj, _Named)):
            super().save_global(obj, name)  # type: ignore[misc]
            return
        line = f"{obj.__module__}\n{obj.__qualname__}\n".encode()
        self.write(pickle.GLOBAL + line)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, type: save_global}  # noqa: SLF001


def _model(net: DetectionModel, class_names: tuple[str, ...]) -> _Named:
    """Return the whole network as the official class of models."""
    stride = torch.tensor(net.strides)
    layers = _layers(net)
    head = layers[-1]
    vars(head).update(stride=stride, inplace=True)
    sequential = _bare(net.model)
    sequential["_modules"] = OrderedDict((str(i), layer) for i, layer in enumerate(layers))
    state = {
        **_bare(net),
        "_modules": OrderedDict(model=_shell(nn.Sequential, sequential)),
        # What building the model from the file's description reads.
        "yaml": {"ch": 3, "anchors": 3, "depth_multiple": 1.0, "width_multiple": 1.0, **net.yaml},
        "save": list(net.save),
        "names": dict(enumerate(class_names)),
        "inplace": True,
        "stride": stride,
        "nc": net.nc,
    }
    return _named(_YOLO, "DetectionModel", state)


def _layers(net: DetectionModel) -> list[Any]:
    """Return the layers, each with its place, sources, type and number of parameters."""
    rows = [*net.yaml["backbone"], *net.yaml["head"]]
    layers = []
    for index, (module, row) in enumerate(zip(net.model, rows, strict=True)):
        layer = _converted(module)
        kind = type(layer)
        vars(layer).update(
            i=index,
            f=row[0],
            type=f"{kind.__module__}.{kind.__qualname__}",
            np=sum(parameter.numel() for parameter in module.parameters()),
        )
        layers.append(layer)
    return layers


def _converted(module: nn.Module) -> Any:
    """Return a module and all in it under official names.

    Raises:
        BadInputError: the official code has no such block.
    """
    kind = type(module)
    state = _bare(module)
    state["_modules"] = OrderedDict(
        (name, child if child is None else _converted(child))
        for name, child in module._modules.items()  # noqa: SLF001 - its own copy of a module
    )
    if kind in _ATTRIBUTES:
        return _named(_COMMON, kind.__name__, state | _ATTRIBUTES[kind](module))
    if kind in _HEADS:
        head = cast("heads.Detect", module)
        numbers = {name: getattr(head, name) for name in ("nc", "nl", "no", "reg_max")}
        return _named(_YOLO, kind.__name__, state | numbers)
    if kind.__module__.startswith("torch.nn.modules."):
        return _shell(kind, vars(module) | state)
    raise BadInputError(
        f"--format official: the network has the block {kind.__name__}, which memplan cannot name "
        "as the official code does. Give --format pt."
    )


def _bare(module: nn.Module) -> dict[str, Any]:
    """Return what every module has, in evaluation: parameters, buffers, hooks."""
    common = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name in common}


def _shell(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """Return a module of PyTorch with another state, without running its constructor."""
    made = kind.__new__(kind)
    vars(made).update(state)
    return made
