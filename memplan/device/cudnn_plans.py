"""The plans cuDNN can build for a convolution on a device that is described to it.

No GPU, driver or handle is needed: a descriptor made from a JSON text stands in for the device.
Tensors and a convolution make an operation, that a graph; the heuristics answer the graph with
engine configurations, best first; each of those becomes a plan, if it can be built. Those that
cuDNN would compile at that moment, 0.2 s each, are not built: the configuration already tells its
workspace, the one of the plan it becomes.

Source: the cuDNN 9 backend API reference; device properties came with 9.8. The graph is the one of
`build_opgraph` in aten/src/ATen/native/cudnn/Conv_v8.cpp (PyTorch 2.11).
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from memplan.convolution import ConvolutionProblem
from memplan.device.cudnn_descriptors import (
    Attribute,
    CudnnError,
    Descriptors,
    installed_version,
)
from memplan.errors import BadInputError, MemplanError


class Mode(IntEnum):
    """Which list of engine configurations (`cudnnBackendHeurMode_t`)."""

    INSTANT = 0
    FALLBACK = 2


class Behaviour(IntEnum):
    """What building a plan of an engine does (`cudnnBackendBehaviorNote_t`)."""

    RUNTIME_COMPILATION = 0


class Note(IntEnum):
    """What an engine does to numbers (`cudnnBackendNumericalNote_t`)."""

    TENSOR_CORE = 0
    DOWN_CONVERT_INPUTS = 1
    NONDETERMINISTIC = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that cuDNN can build."""

    workspace_bytes: int
    engine: int
    """cuDNN's number of the algorithm among those for one kind of operation."""
    notes: frozenset[int]
    """Members of `Note`, and numbers of other notes."""


# Of cudnnBackendDescriptorType_t.
_CONVOLUTION, _ENGINE, _ENGINE_CONFIG, _HEURISTICS, _PLAN = 1, 2, 3, 4, 5
_GRAPH, _TENSOR, _DEVICE = 15, 17, 38

_ENUM, _INT64, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_CONVOLUTION_DATA_TYPE = Attribute(100, 1, _ENUM)
_CONVOLUTION_MODE = Attribute(101, 7, _ENUM)
_CONVOLUTION_DILATIONS = Attribute(102, 3, _INT64)
_CONVOLUTION_STRIDES = Attribute(103, 3, _INT64)
_CONVOLUTION_POST_PADDINGS = Attribute(104, 3, _INT64)
_CONVOLUTION_PRE_PADDINGS = Attribute(105, 3, _INT64)
_CONVOLUTION_RANK = Attribute(106, 3, _INT64)
_HEURISTICS_MODE = Attribute(200, 8, _ENUM)
_HEURISTICS_GRAPH = Attribute(201, 15, _POINTER)
_HEURISTICS_CONFIGS = Attribute(202, 15, _POINTER)
_HEURISTICS_DEVICE = Attribute(204, 15, _POINTER)
_CONFIG_ENGINE = Attribute(300, 15, _POINTER)
_CONFIG_WORKSPACE = Attribute(303, 3, _INT64)
_PLAN_CONFIG = Attribute(401, 15, _POINTER)
_PLAN_WORKSPACE = Attribute(402, 3, _INT64)
_PLAN_DEVICE = Attribute(407, 15, _POINTER)
_GRAPH_OPERATIONS = Attribute(801, 15, _POINTER)
_TENSOR_ALIGNMENT = Attribute(900, 3, _INT64)
_TENSOR_DATA_TYPE = Attribute(901, 1, _ENUM)
_TENSOR_DIMENSIONS = Attribute(902, 3, _INT64)
_TENSOR_STRIDES = Attribute(903, 3, _INT64)
_TENSOR_ID = Attribute(906, 3, _INT64)
_ENGINE_NUMBER = Attribute(1301, 3, _INT64)
_ENGINE_NOTES = Attribute(1303, 11, _ENUM)
_ENGINE_BEHAVIOURS = Attribute(1305, 19, _ENUM)
_DEVICE_JSON = Attribute(2702, 24, ctypes.c_char)

# Descriptor type of each kind of operation; its attributes for input, weight, output and
# convolution; those for the factors of the result and of what was there before.
_OPERATIONS = {
    "forward": (10, (704, 703, 705, 702), (700, 701)),
    "input_gradient": (12, (710, 709, 711, 708), (706, 707)),
    "weight_gradient": (11, (716, 715, 717, 714), (712, 713)),
}
_DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 9}
_CROSS_CORRELATION = 1
_MOST_NOTES = 16
# The caching allocator's addresses are multiples of 512; PyTorch promises no more than this.
# Source: `getAlignment` in Conv_v8.cpp.
_ALIGNMENT_BYTES = 32


@functools.cache
def device(description: str) -> int:
    """Return the device that a JSON text describes; it lives as long as the process.

    Raises:
        BadInputError: cuDNN is missing or too old, or does not accept the description.
    """
    text = description.encode()
    try:
        return Descriptors().make(_DEVICE, (_DEVICE_JSON, [bytes([byte]) for byte in text]))
    except CudnnError as error:
        raise BadInputError(
            f"cuDNN {installed_version()} does not accept this card's description (status "
            f"{error}). Name another card with --gpu."
        ) from None


def plans(problem: ConvolutionProblem, on: int, mode: Mode) -> Iterator[Plan]:
    """Yield the plans that can be built, best first, each built when it is asked for.

    The first takes about 0.1 ms. The second makes cuDNN work the whole list out, which takes
    about 1.5 ms.

    Args:
        problem: as PyTorch hands it over, so with two or three spatial dimensions.
        on: the device.
        mode: which list.

    Raises:
        MemplanError: cuDNN failed to build a plan, and did not refuse it.
    """
    with Descriptors() as descriptors:
        try:
            heuristics = _heuristics(descriptors, problem, on, mode)
        except CudnnError:
            return  # no engine is for such a problem
        for config in _configs(descriptors, heuristics):
            plan = _plan(descriptors, config, on)
            if plan is not None:
                yield plan


def _heuristics(descriptors: Descriptors, problem: ConvolutionProblem, on: int, mode: Mode) -> int:
    return descriptors.make(
        _HEURISTICS,
        (_HEURISTICS_GRAPH, [_graph(descriptors, problem)]),
        (_HEURISTICS_MODE, [mode]),
        (_HEURISTICS_DEVICE, [on]),
    )


def _configs(descriptors: Descriptors, heuristics: int) -> Iterator[int]:
    """Yield engine configurations; cuDNN works out as many as it is asked for, so few at first."""
    given, asked = 0, 1
    while True:
        configs = descriptors.read_descriptors(
            heuristics, _HEURISTICS_CONFIGS, _ENGINE_CONFIG, asked
        )
        yield from configs[given:]
        if len(configs) < asked:
            return
        given, asked = asked, 8 * asked


def _plan(descriptors: Descriptors, config: int, on: int) -> Plan | None:
    try:
        if _is_compiled(descriptors, config):
            workspace = _stated_bytes(descriptors, config)
        else:
            workspace = _built_bytes(descriptors, config, on)
    except CudnnError as error:
        if error.is_of_the_process:
            raise MemplanError(
                f"cuDNN {installed_version()} failed to plan a convolution (status {error}). "
                "Free host memory and run the command again."
            ) from None
        return None
    engine = _engine(descriptors, config)
    return Plan(
        workspace_bytes=workspace,
        engine=descriptors.read(engine, _ENGINE_NUMBER, 1)[0],
        notes=frozenset(descriptors.read(engine, _ENGINE_NOTES, _MOST_NOTES)),
    )


def _engine(descriptors: Descriptors, config: int) -> int:
    return descriptors.read_descriptors(config, _CONFIG_ENGINE, _ENGINE, 1)[0]


def _is_compiled(descriptors: Descriptors, config: int) -> bool:
    """Return whether cuDNN would compile the engine's kernel to build the plan."""
    behaviours = descriptors.read(_engine(descriptors, config), _ENGINE_BEHAVIOURS, _MOST_NOTES)
    return Behaviour.RUNTIME_COMPILATION in behaviours


def _stated_bytes(descriptors: Descriptors, config: int) -> int:
    return descriptors.read(config, _CONFIG_WORKSPACE, 1)[0]


def _built_bytes(descriptors: Descriptors, config: int, on: int) -> int:
    plan = descriptors.make(_PLAN, (_PLAN_CONFIG, [config]), (_PLAN_DEVICE, [on]))
    return descriptors.read(plan, _PLAN_WORKSPACE, 1)[0]


def _graph(descriptors: Descriptors, problem: ConvolutionProblem) -> int:
    """Return the graph of one convolution, computed in float32."""

    def tensor(name: str, shape: Sequence[int]) -> int:
        strides = packed_strides(shape, channels_last=problem.channels_last)
        return descriptors.make(
            _TENSOR,
            (_TENSOR_ID, [ord(name)]),
            (_TENSOR_DATA_TYPE, [_DATA_TYPES[problem.dtype]]),
            (_TENSOR_DIMENSIONS, shape),
            (_TENSOR_STRIDES, strides),
            (_TENSOR_ALIGNMENT, [_ALIGNMENT_BYTES]),
        )

    convolution = descriptors.make(
        _CONVOLUTION,
        (_CONVOLUTION_DATA_TYPE, [_DATA_TYPES["float32"]]),
        (_CONVOLUTION_MODE, [_CROSS_CORRELATION]),
        (_CONVOLUTION_RANK, [len(problem.stride)]),
        (_CONVOLUTION_STRIDES, problem.stride),
        (_CONVOLUTION_DILATIONS, problem.dilation),
        (_CONVOLUTION_PRE_PADDINGS, problem.padding),
        (_CONVOLUTION_POST_PADDINGS, problem.padding),
    )
    kind, parts, (alpha, beta) = _OPERATIONS[problem.kind]
    shapes = {"x": problem.input, "w": problem.weight, "y": problem.output}
    made = [*(tensor(name, shape) for name, shape in shapes.items()), convolution]
    operation = descriptors.make(
        kind,
        *((Attribute(part, 15, _POINTER), [one]) for part, one in zip(parts, made, strict=True)),
        (Attribute(alpha, 4, _FLOAT), [1.0]),
        (Attribute(beta, 4, _FLOAT), [0.0]),
    )
    return descriptors.make(_GRAPH, (_GRAPH_OPERATIONS, [operation]))


def packed_strides(shape: Sequence[int], *, channels_last: bool) -> tuple[int, ...]:
    """Return the strides of a packed tensor, in elements.

    A dimension of size 1 gets the stride it would have if it were longer, as PyTorch fixes it
    before cuDNN sees it. Source: `fixSizeOneDimStride` in aten/src/ATen/cudnn/Descriptors.cpp.
    """
    spatial = range(len(shape) - 1, 1, -1)
    innermost_first = (1, *spatial, 0) if channels_last else (*spatial, 1, 0)
    strides = [0] * len(shape)
    for place, dimension in enumerate(innermost_first):
        strides[dimension] = math.prod(shape[inner] for inner in innermost_first[:place])
    return tuple(strides)
