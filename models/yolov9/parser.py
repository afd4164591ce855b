"""Model description files: `[from, number, module, args]` rows to layers, never evaluating text."""

from __future__ import annotations

import ast
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memplan.errors import BadInputError
from memplan.files import Source, brief

from . import blocks
from .heads import HEADS as BOX_HEADS
from .heads import Detect
from .known_blocks import PLAIN, SCALED, TAKES_REPEATS, layer_of_torch
from .maps import Output, measured, single, stated
from .own_blocks import arguments_of, missing_block
from .segment_heads import HEADS as SEGMENT_HEADS
from .segment_heads import Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "nn.SiLU()": lambda: nn.SiLU(inplace=True),
    "nn.ReLU()": lambda: nn.ReLU(inplace=True),
    "nn.ReLU6()": lambda: nn.ReLU6(inplace=True),
    "nn.LeakyReLU(0.1)": lambda: nn.LeakyReLU(0.1, inplace=True),
    "nn.Hardswish()": lambda: nn.Hardswish(inplace=True),
    "nn.Mish()": nn.Mish,
    "nn.GELU()": nn.GELU,
}
HEADS: dict[str, type[Detect]] = {**BOX_HEADS, **SEGMENT_HEADS}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row of a model description, built."""

    module: nn.Module
    """The layer itself."""
    sources: int | list[int]
    """Where its input comes from: -1 the layer before, else absolute layer indices."""


def known_modules() -> list[str]:
    """Return the module names a description may use beside the layers of torch.nn, sorted."""
    return sorted({*SCALED, *PLAIN, *HEADS, "CBLinear"})


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a model description file.

    Raises:
        BadInputError: the file cannot be read, is not YAML, or lacks backbone and head.
    """
    content = Source(path=path, what="a model description", way_out="Check the path.").yaml()
    if not isinstance(content, dict) or not {"backbone", "head"} <= content.keys():
        raise BadInputError(
            f"{path} describes no model: it needs the lists 'backbone' and 'head' of"
            " [from, number, module, args] rows, as the official files have."
        )
    return content


def activation(description: Mapping[str, Any]) -> Callable[[], nn.Module] | None:
    """Return the factory of the activation that a description asks for, None for the default SiLU.

    Raises:
        BadInputError: the activation is not one of those known.
    """
    text = description.get("activation")
    if not text:
        return None
    factory = _ACTIVATIONS.get(str(text).replace(" ", "").replace("torch.nn.", "nn."))
    if factory is None:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise BadInputError(f"activation {text!r} is not known. Known: {known}.")
    return factory


def parse(
    description: Mapping[str, Any],
    nc: int,
    image_channels: int = 3,
    own: Mapping[str, type[nn.Module]] | None = None,
) -> list[Layer]:
    """Return the layers a description asks for; the last is the head, with its strides set.

    Args:
        description: the content of a file; `depth_multiple` scales repeats, `width_multiple` the
            output channels (rounded up to a multiple of 8).
        nc: number of classes.
        image_channels: channels of the images.
        own: the user's blocks by name, in place of those known.

    Raises:
        BadInputError: a row is malformed, or names a module that is not known.
    """
    rows = _rows(description)
    builder = _Builder(
        nc=nc,
        depth=_multiple(description, "depth_multiple"),
        width=_multiple(description, "width_multiple"),
        image_channels=image_channels,
        own=own or {},
        unscaled=_unscaled(description, nc),
    )
    for row in rows:
        builder.add(row)
    if type(builder.layers[-1].module).__name__ not in HEADS:
        heads = ", ".join(HEADS)
        raise BadInputError(f"The last row must be a head, one of {heads}.")
    return builder.layers


def _unscaled(description: Mapping[str, Any], nc: int) -> int | None:
    """Return the channels that a row keeps whatever the width multiple is; None where none are.

    Source: the official parse_model leaves alone what anchor boxes would need as outputs.
    """
    anchors = description.get("anchors")
    if isinstance(anchors, list) and anchors and isinstance(anchors[0], list):
        anchors = len(anchors[0]) // 2
    return anchors * (nc + 5) if isinstance(anchors, int) else None


_MOST_ROWS = 1000
_MOST_MULTIPLE = 64.0
_MOST_NUMBER = 65_536
"""Channels, kernels, strides and repeats of a row."""
_MOST_PARAMETERS = 500_000_000
"""Of a description; those that ship have 70 million at most."""


def _rows(description: Mapping[str, Any]) -> list[Any]:
    rows: list[Any] = []
    for name in ("backbone", "head"):
        part = description[name]
        if not isinstance(part, list):
            raise BadInputError(
                f"{name} of the model description is {brief(part)}; it must be a list of rows."
            )
        rows += part
    if not 1 <= len(rows) <= _MOST_ROWS:
        raise BadInputError(f"The model description has {len(rows)} rows, not 1 to {_MOST_ROWS}.")
    return rows


def _multiple(description: Mapping[str, Any], name: str) -> float:
    value = description.get(name, 1.0)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MOST_MULTIPLE:  # NaN is not above 0 either
        raise BadInputError(
            f"{name} is {brief(value)}; it must be a number above 0, {_MOST_MULTIPLE:g} at most."
        )
    return float(value)


def _check_numbers(values: object, index: int) -> None:
    """Refuse what no layer has: endless numbers, and whole ones beyond the bound."""
    if isinstance(values, list):
        for value in values:
            _check_numbers(value, index)
    elif isinstance(values, int | float) and not -_MOST_NUMBER <= values <= _MOST_NUMBER:
        raise BadInputError(
            f"Row {index} of the model description has the number {brief(values)}; numbers are "
            f"{_MOST_NUMBER} at most."
        )


class _Builder:
    """Builds rows one after the other, following channels and strides."""

    def __init__(
        self,
        *,
        nc: int,
        depth: float,
        width: float,
        image_channels: int,
        own: Mapping[str, type[nn.Module]],
        unscaled: int | None,
    ) -> None:
        self.nc = nc
        self.depth = depth
        self.width = width
        self.own = own
        self.unscaled = unscaled
        self.layers: list[Layer] = []
        self.outputs: list[Output] = []
        self.num_parameters = 0
        self.measures = False
        """Whether maps are looked at, because a row before does not say what it makes of them."""
        self.image = Output(channels=image_channels, stride=1.0)

    def add(self, row: object) -> None:
        """Append the layer of one row."""
        index = len(self.layers)
        match row:
            case [(int() | list()) as source, int(repeats), str(name), list(args)]:
                pass
            case _:
                raise BadInputError(
                    f"Row {index} of the model description is {brief(row)}; it must be"
                    " [from, number, module, args]."
                )
        _check_numbers(row, index)
        several = isinstance(source, list)
        try:
            inputs = [self._input(s) for s in (source if isinstance(source, list) else [source])]
            values = [_literal(a, self.nc) for a in args]
            _check_numbers([v for v, a in zip(values, args, strict=True) if a != "nc"], index)
            output = self._planned(name, inputs, values, repeats, several=several)
            _check_output(output)
            module = self._build(name, inputs, values, repeats)
        except BadInputError:
            raise
        except Exception as error:  # a layer raises anything for numbers it does not expect
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BadInputError(
                f"Row {index} of the model description, {brief(row)}, cannot be built: {reason}."
            ) from error
        self.layers.append(Layer(module=module, sources=self._absolute(source)))
        self.outputs.append(output)

    def _planned(
        self, name: str, inputs: list[Output], args: list[Any], repeats: int, *, several: bool
    ) -> Output:
        """Return what a row gives; it is built for that where it takes no memory.

        Raises:
            ValueError: it has too many repeats or parameters.
        """
        if not 1 <= repeats <= _MOST_REPEATS:
            raise ValueError(f"it repeats {brief(repeats)} times, not 1 to {_MOST_REPEATS}")
        # Where tensors are fake already they take no memory, and cannot be mixed with others.
        place = torch.device("meta") if type(torch.empty(0)) is torch.Tensor else nullcontext()
        with place:
            module = self._build(name, inputs, args, repeats)
            self._check_parameters(module)
            output = None
            if not self.measures and name not in self.own:
                channels = self._wide(args[0]) if name in SCALED else None
                output = stated(module, inputs, channels)
            if output is None:
                self.measures = True
                output = measured(module, inputs, several=several)
        return output

    def _check_parameters(self, module: nn.Module) -> None:
        """Refuse a layer by its parameters, before memory is asked for."""
        self.num_parameters += sum(one.numel() for one in module.parameters())
        if self.num_parameters > _MOST_PARAMETERS:
            raise ValueError(
                f"the model has {self.num_parameters} parameters with it; {_MOST_PARAMETERS} are "
                "the most"
            )
        for one in module.modules():
            if isinstance(one, nn.Conv2d | nn.MaxPool2d):
                _check_window(one)

    def _input(self, source: int) -> Output:
        """Return what a layer's source gives; the first layer reads the image."""
        if not self.outputs:
            return self.image
        return self.outputs[source]

    def _absolute(self, source: int | list[int]) -> int | list[int]:
        """Return sources as absolute indices, -1 staying "the layer before"."""
        index = len(self.layers)
        if isinstance(source, int):
            return source if source in (-1, index - 1) or source >= 0 else index + source
        return [s if s >= 0 or s == -1 else index + s for s in source]

    def _build(self, name: str, inputs: list[Output], args: list[Any], repeats: int) -> nn.Module:
        """Return the module of one row."""
        if name in HEADS and name not in self.own:
            return self._head(name, inputs, args)
        scaled = max(round(repeats * self.depth), 1) if repeats > 1 else 1
        kind, values, repeated = self._kind(name, inputs, args, scaled)
        stack = [kind(*values) for _ in range(repeated)]
        return stack[0] if repeated == 1 else nn.Sequential(*stack)

    def _kind(
        self, name: str, inputs: list[Output], args: list[Any], repeats: int
    ) -> tuple[type[nn.Module], list[Any], int]:
        """Return the class of a row's module, its arguments, and how often it stands in a row.

        Raises:
            BadInputError: there is no such module.
        """
        first = inputs[0]
        if name in self.own:
            kind = self.own[name]
            channels = [single(one) for one in inputs]
            return (kind, *arguments_of(kind, channels, args, self._wide, repeats))
        if name in SCALED:
            values = [single(first), self._wide(args[0])]
            if name in TAKES_REPEATS:
                return SCALED[name], [*values, repeats, *args[1:]], 1
            return SCALED[name], [*values, *args[1:]], repeats
        if name == "CBLinear":
            return blocks.CBLinear, [single(first), *args], repeats
        if name == "nn.BatchNorm2d":
            return nn.BatchNorm2d, [single(first)], repeats
        found = PLAIN.get(name) or layer_of_torch(name)
        if name == "Panoptic":
            raise BadInputError(
                "A Panoptic head, for which every pixel has a class, is not offered: neither its "
                "loss nor its data are known here. Networks with masks of objects are: --cfg "
                "gelan-c-seg."
            )
        if found is None:
            raise missing_block(name, dict.fromkeys(known_modules()))
        return found, args, repeats

    def _wide(self, channels: Any) -> int:
        """Return a row's output channels, scaled and rounded up to a multiple of 8."""
        if channels == self.unscaled:
            return int(channels)
        return int(math.ceil(channels * self.width / 8) * 8)

    def _head(self, name: str, inputs: list[Output], args: list[Any]) -> Detect:
        """Return a head; the strides of its levels are those of the main (last) branch."""
        kind = HEADS[name]
        has_masks = issubclass(kind, Segments)
        if len(args) != (3 if has_masks else 1):
            wanted = (
                "three arguments: nc, prototypes, channels" if has_masks else "one argument, nc"
            )
            raise ValueError(f"the head {name} takes {wanted}")
        own = kind.own_inputs * kind.branches if issubclass(kind, Segments) else 0
        levels, rest = divmod(len(inputs) - own, kind.branches)
        strides = [i.stride for i in inputs[: len(inputs) - own]]
        if rest or any(strides[i] != strides[i % levels] for i in range(len(strides))):
            raise ValueError(
                f"{name} needs {kind.branches} branch(es) of inputs with equal strides,"
                f" got strides {strides}"
            )
        more = [int(args[1]), math.ceil(args[2] * self.width / 8) * 8] if has_masks else []
        return kind(int(args[0]), [single(i) for i in inputs], strides[:levels], *more)


_MOST_REPEATS = 100


def _check_window(layer: nn.Conv2d | nn.MaxPool2d) -> None:
    """Refuse a layer with no window or no channels, which PyTorch makes and cannot run.

    Raises:
        ValueError: a kernel, stride or number of channels is below 1.
    """
    for name in ("kernel_size", "stride", "dilation", "in_channels", "out_channels"):
        value = getattr(layer, name, 1)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(number, int) and number >= 1 for number in numbers):
            raise ValueError(f"{name} is {brief(value)}, not 1 or more")


def _check_output(output: Output) -> None:
    """Refuse maps without channels or of no size.

    Raises:
        ValueError: a number of channels is below 1, or a stride is not above 0 and finite.
    """
    channels = output.channels if isinstance(output.channels, list) else [output.channels]
    if not all(isinstance(number, int) and 1 <= number <= _MOST_NUMBER for number in channels):
        raise ValueError(f"it gives {brief(output.channels)} channels, not 1 to {_MOST_NUMBER}")
    if not 0 < output.stride <= _MOST_NUMBER:
        raise ValueError(f"it gives a map at stride {output.stride}")


def _literal(value: object, nc: int) -> object:
    """Return an argument as Python's value.

    The only names are nc, None, True, False and the activations; text that is a number, a list or a
    tuple is read as such.
    """
    if isinstance(value, list):
        return [_literal(v, nc) for v in value]
    if not isinstance(value, str):
        return value
    if value == "nc":
        return nc
    if value.replace(" ", "").replace("torch.nn.", "nn.") in _ACTIVATIONS:
        return _ACTIVATIONS[value.replace(" ", "").replace("torch.nn.", "nn.")]()
    try:
        read = ast.literal_eval(value) if len(value) <= _LONGEST_VALUE else value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return list(read) if isinstance(read, tuple) else read


_LONGEST_VALUE = 100


def saved_layers(sources: Sequence[int | list[int]]) -> set[int]:
    """Return the indices of the layers whose output a later layer, not the next one, reads."""
    flat = [s for f in sources for s in (f if isinstance(f, list) else [f])]
    return {s for s in flat if s != -1}
