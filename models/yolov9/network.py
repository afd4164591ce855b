"""The network: layers in a row, some reading earlier ones, the head last."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from memplan.errors import BadInputError, UnknownNameError
from memplan.files import brief

from . import blocks, lean, parser
from .arguments import CFG_FOLDER

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
        own: the user's blocks that the description may name, see `own_blocks`.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        nc: int | None = None,
        name: str = "",
        own: Mapping[str, type[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.nc = _number_of_classes(description, nc)
        self.name = name
        self.yaml = {**copy.deepcopy(dict(description)), "nc": self.nc}
        self.own_blocks = dict(own or {})
        layers = parser.parse(description, self.nc, own=self.own_blocks)
        self.model = nn.Sequential(*(layer.module for layer in layers))
        self.sources = [layer.sources for layer in layers]
        self.save = sorted(parser.saved_layers(self.sources))
        self.names = {i: str(i) for i in range(self.nc)}
        _use_activation(self, parser.activation(description))
        _start_as_official(self)

    @property
    def head(self) -> Detect:
        """The detection head, the last layer."""
        return cast("Detect", self.model[-1])

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels a cell of each level, such as (8.0, 16.0, 32.0)."""
        return self.head.strides

    def layer_sources(self, index: int) -> list[int]:
        """Return the layers that a layer reads, in order; -1 is the image."""
        source = self.sources[index]
        flat = source if isinstance(source, list) else [source]
        return [index - 1 if s == -1 else s for s in flat]

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


def build(
    name_or_path: str | Path,
    nc: int | None = None,
    own: Mapping[str, type[nn.Module]] | None = None,
) -> DetectionModel:
    """Return a network, freshly initialised on the current default device.

    Args:
        name_or_path: a configuration of `names()`, or the path of a description file.
        nc: number of classes, at least 1; None takes the description's (80 in those shipped).
        own: the user's blocks that a description file may name.

    Raises:
        UnknownNameError: no such configuration and no such file.
        BadInputError: the file cannot be used, or nc is below 1.
    """
    path = CFG_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file() or Path(name_or_path).suffix in {".yaml", ".yml"}:
        path = Path(name_or_path)
        if path.suffix not in {".yaml", ".yml"}:
            raise UnknownNameError(
                "model", str(name_or_path), names(), f"Known: {', '.join(names())}; or a PATH.yaml."
            )
    return DetectionModel(parser.read_description(path), nc, path.stem, own)


def names() -> list[str]:
    """Return the configurations that ship with memplan, sorted."""
    return sorted(path.stem for path in CFG_FOLDER.glob("*.yaml"))


def recompute_blocks(net: DetectionModel) -> list[str]:
    """Return the paths of the layers worth recomputing, such as `model.2`.

    These are the top-level layers with parameters, except the head; pooling, concatenation and
    the like keep little for backward that they would not need again.
    """
    layers = list(net.model.named_children())[:-1]
    return [f"model.{i}" for i, layer in layers if any(True for _ in layer.parameters())]


def main_layers(net: DetectionModel) -> set[int]:
    """Return the layers that the main branch needs, which is the head's last; the head included."""
    last = len(net.model) - 1
    sources = net.layer_sources(last)
    needed = {last, *(sources[place] for place in net.head.inputs_of(net.head.branches - 1))}
    for index in range(last - 1, -1, -1):
        if index in needed:
            needed.update(net.layer_sources(index))
    return needed - {-1}


def main_maps(network: DetectionModel, images: Tensor) -> list[Tensor]:
    """Return the raw maps of the main branch, running only the layers that it needs."""
    return network.head.raw(main_inputs(network, images), network.head.branches - 1)


def main_inputs(network: DetectionModel, images: Tensor) -> list[Tensor]:
    """Return the head's inputs, those of the main branch computed, images in place of others."""
    head = network.head
    last = len(network.model) - 1
    sources_of_head = network.layer_sources(last)
    read_by_head = [sources_of_head[place] for place in head.inputs_of(head.branches - 1)]
    needed = sorted(main_layers(network) - {last})
    outputs: dict[int, Any] = {-1: images}
    last_use = {source: index for index in needed for source in network.layer_sources(index)}
    for index in needed:
        sources = network.layer_sources(index)
        inputs = [outputs[source] for source in sources]
        several = isinstance(network.sources[index], list)
        outputs[index] = network.model[index](inputs if several else inputs[0])
        # What no later layer reads goes at once, as in training's forward.
        for source in sources:
            if last_use[source] == index and source not in read_by_head:
                outputs.pop(source, None)
    # The inputs of other branches are not looked at; the images stand in for them.
    return [outputs.get(source, images) for source in sources_of_head]


def decoded(network: DetectionModel, maps: list[Tensor]) -> Tensor:
    """Return the main branch's maps as boxes in pixels and probabilities, in float32."""
    with torch.autocast(maps[0].device.type, enabled=False):
        full = [part.float() for part in maps]
        return network.head.decode(full, network.head.branches - 1)


def make_lean(net: DetectionModel) -> int:
    """Make every block that can be keep less for backward, in place; return how many are.

    Blocks whose batch norm spans several devices, or whose activation is neither SiLU nor ReLU,
    stay as they are.
    """
    count = 0
    for module in list(net.modules()):
        if isinstance(module, blocks.Conv | blocks.RepConvN) and module.can_be_lean():
            module.lean = True
            count += 1
        for kind in (lean.Convolution, lean.Upsample):
            if kind.can_replace(module):
                module.__class__ = kind
    return count


_MOST_CLASSES = 100_000


def _number_of_classes(description: Mapping[str, Any], nc: int | None) -> int:
    """Return nc, or the description's; an error when there is none."""
    value = description.get("nc") if nc is None else nc
    if not isinstance(value, int) or not 1 <= value <= _MOST_CLASSES:
        raise BadInputError(
            f"nc is {brief(value)}; the number of classes must be an integer, 1 or more, and "
            f"{_MOST_CLASSES} at most."
        )
    return value


def _use_activation(net: nn.Module, factory: Callable[[], nn.Module] | None) -> None:
    """Replace the default activation throughout this one network."""
    if factory is None:
        return
    for module in net.modules():
        if isinstance(module, blocks.Conv | blocks.RepConvN) and isinstance(module.act, nn.SiLU):
            module.act = factory()


_IN_PLACE = (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU)


def _start_as_official(net: nn.Module) -> None:
    """Set what official training sets of every block, whoever wrote it.

    Batch norm has its constants, and the statistics after one official forward pass of a zero
    image; activations work in place.

    Source: initialize_weights in the official utils/torch_utils.py.
    """
    for module in net.modules():
        if isinstance(module, _IN_PLACE):
            module.inplace = True
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = blocks.BATCH_NORM_EPS, blocks.BATCH_NORM_MOMENTUM
            if module.running_var is not None and module.num_batches_tracked is not None:
                nn.init.constant_(module.running_var, 0.9)
                nn.init.constant_(module.num_batches_tracked, 1)
