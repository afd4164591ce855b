"""The network: layers in a row, some reading earlier ones, the head last."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from memplan.errors import BadInputError, UnknownNameError

from . import blocks, parser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .heads import Detect


class DetectionModel(nn.Module):
    """A detector whose state_dict keys are those of official checkpoints, `model.<layer>...`.

    In training mode a call returns the raw maps and in evaluation (decoded, maps), nested as the
    head documents it: `Detect`, `DualDDetect` or `TripleDDetect`.

    Batch norm starts where the official network is after the forward pass of a zero image that it
    makes to find its strides: running variance 0.9, one batch tracked. Here strides follow from the
    description, so building runs no forward pass and works on fake and meta devices.

    Args:
        description: what `parser.read_description` returns.
        nc: number of classes; None takes the description's.
        name: the name of the configuration, for messages.
    """

    def __init__(
        self, description: Mapping[str, Any], nc: int | None = None, name: str = ""
    ) -> None:
        super().__init__()
        self.nc = _number_of_classes(description, nc)
        self.name = name
        self.yaml = {**copy.deepcopy(dict(description)), "nc": self.nc}
        layers = parser.parse(description, self.nc)
        self.model = nn.Sequential(*(layer.module for layer in layers))
        self.sources = [layer.sources for layer in layers]
        self.save = sorted(parser.saved_layers(self.sources))
        self.names = {i: str(i) for i in range(self.nc)}
        _use_activation(self, parser.activation(description))
        _start_batch_norm(self)

    @property
    def head(self) -> Detect:
        """The detection head, the last layer."""
        return cast("Detect", self.model[-1])

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels a cell of each level, such as (8.0, 16.0, 32.0)."""
        return self.head.strides

    def forward(self, x: Tensor) -> Any:
        """Return the head's result for images `[B, 3, H, W]`, H and W multiples of 32."""
        outputs: list[Any] = []
        out: Any = x
        for index, (layer, source) in enumerate(zip(self.model, self.sources, strict=True)):
            if isinstance(source, list):
                out = layer([out if s == -1 else outputs[s] for s in source])
            else:
                out = layer(out if source == -1 else outputs[source])
            outputs.append(out if index in self.save else None)
        return out


def build(name_or_path: str | Path, nc: int | None = None) -> DetectionModel:
    """Return a network, freshly initialised on the current default device.

    Args:
        name_or_path: a configuration of `names()`, or the path of a description file.
        nc: number of classes, at least 1; None takes the description's (80 in those shipped).

    Raises:
        UnknownNameError: no such configuration and no such file.
        BadInputError: the file cannot be used, or nc is below 1.
    """
    path = parser.CFG_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file() or Path(name_or_path).suffix in {".yaml", ".yml"}:
        path = Path(name_or_path)
        if path.suffix not in {".yaml", ".yml"}:
            raise UnknownNameError(
                "model", str(name_or_path), names(), f"Known: {', '.join(names())}; or a PATH.yaml."
            )
    return DetectionModel(parser.read_description(path), nc, path.stem)


def names() -> list[str]:
    """Return the configurations that ship with memplan, sorted."""
    return sorted(path.stem for path in parser.CFG_FOLDER.glob("*.yaml"))


def recompute_blocks(net: DetectionModel) -> list[str]:
    """Return the paths of the layers worth recomputing, such as `model.2`.

    These are the top-level layers with parameters, except the head; pooling, concatenation and
    the like keep little for backward that they would not need again.
    """
    layers = list(net.model.named_children())[:-1]
    return [f"model.{i}" for i, layer in layers if any(True for _ in layer.parameters())]


def _number_of_classes(description: Mapping[str, Any], nc: int | None) -> int:
    """Return nc, or the description's; an error when there is none."""
    value = description.get("nc") if nc is None else nc
    if not isinstance(value, int) or value < 1:
        raise BadInputError(
            f"nc is {value!r}; the number of classes must be an integer, 1 or more."
        )
    return value


def _use_activation(net: nn.Module, factory: Callable[[], nn.Module] | None) -> None:
    """Replace the default activation throughout this one network."""
    if factory is None:
        return
    for module in net.modules():
        if isinstance(module, blocks.Conv | blocks.RepConvN) and isinstance(module.act, nn.SiLU):
            module.act = factory()


def _start_batch_norm(net: nn.Module) -> None:
    """Set the running statistics to those after one official forward pass of a zero image."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            nn.init.constant_(module.running_var, 0.9)
            nn.init.constant_(module.num_batches_tracked, 1)
