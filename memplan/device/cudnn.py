"""The workspace cuDNN asks for in a convolution, on any card, with no GPU and no driver.

cuDNN plans convolutions from a description of the device, and the description need not be of a
device that is there. This module asks it the question PyTorch asks and takes PyTorch's choice:
the engine configurations of heuristic mode A, in order, then those of the fallback list; those
that PyTorch's settings rule out are skipped; the first that builds is it. Its workspace is
requested from the caching allocator inside the operator, after the output, and freed at its end;
a workspace of 0 bytes requests nothing.

Which convolutions reach cuDNN is the recorder's business. Every problem given here is taken to:
`use_cudnn` and `use_cudnn_depthwise` of aten/src/ATen/native/Convolution.cpp said yes (so no
dilated or depthwise convolution that PyTorch gives to its own kernels), tensors are packed in one
layout (PyTorch makes them so first; that copy is not part of the workspace), and addresses are
aligned as the caching allocator aligns them. A transposed convolution is its mirror image: its
forward pass is an "input_gradient" whose `input` is the transposed convolution's output.

Source: aten/src/ATen/native/cudnn/Conv_v8.cpp (PyTorch 2.11): `run_single_conv`,
`get_configs_from_heuristics`, `filterEngineConfigs`, `try_configs`. PyTorch asks for mode
*instant* and promises 32-byte alignment, the front end used here asks for mode A and promises 16;
asked both ways through cuDNN's own C interface, 763 of 763 random problems on four cards agreed.

Limits: a plan that builds but fails when it runs, and an out-of-memory while its workspace is
requested, make PyTorch take the next one; neither is modelled. `TORCH_CUDNN_USE_HEURISTIC_MODE_B`
and a file named by `CUDNN_ERRATA_JSON_FILE` are not followed.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from memplan.convolution import ConvolutionProblem
from memplan.device.catalogue import architecture
from memplan.device.workspace_cache import WorkspaceCache
from memplan.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from memplan.device.card import Card

# Builds for CUDA 13 begin at Turing; those for CUDA 12 still know Pascal and Volta.
# Source: cuDNN 9 support matrix, and the CUDA 13.0 release notes.
OLDEST_CAPABILITY = {"nvidia-cudnn-cu13": (7, 5), "nvidia-cudnn-cu12": (5, 0)}


class WorkspaceOracle:
    """Answers, for one card and the installed cuDNN, how many bytes a convolution's workspace has.

    Answers are kept in memory and in a file under `$XDG_CACHE_HOME/memplan` (`~/.cache/memplan`),
    one for each cuDNN version, front end and card; `MEMPLAN_CACHE=off` keeps them in memory only.

    Args:
        card: the card to answer for.
        cudnn_version: the version whose answers are wanted, such as "9.19.0"; only the installed
            one can be asked, so this is a check. None takes the installed one.

    Attributes:
        source: where the answers come from, for a report.
        note: what the user must know about them; empty when there is nothing.

    Raises:
        BadInputError: cuDNN or its front end is missing, or another version is installed.
    """

    def __init__(self, card: Card, cudnn_version: str | None = None) -> None:
        self.card = card
        self.cudnn_version = installed_version()
        if cudnn_version not in (None, self.cudnn_version):
            raise BadInputError(
                f"Workspaces of cuDNN {cudnn_version} cannot be told: {self.cudnn_version} is "
                "installed. Install the torch release that brings the other one."
            )
        described, self.note = _nearest_supported(card)
        self.source = f"cuDNN {self.cudnn_version} asked about {described.title}"
        self._description = described.cudnn_description()
        self._answers: dict[str, int] = {}
        self._file = WorkspaceCache.of(
            self._description, self.cudnn_version, str(_frontend().__version__)
        )
        self._loaded = False

    def bytes(self, problem: ConvolutionProblem) -> int:
        """Return the workspace of one convolution, bytes as requested from the allocator.

        Raises:
            BadInputError: cuDNN has no plan for it on this card.
        """
        return self.bytes_many([problem])[0]

    def bytes_many(self, problems: Iterable[ConvolutionProblem]) -> list[int]:
        """Return the workspace of each convolution, asking about equal ones once.

        About 4 ms for each different problem the caches do not know, after 0.3 s for the first.
        Threads make it slower, and a second process costs what it saves.

        Raises:
            BadInputError: cuDNN has no plan for one of them on this card.
        """
        keyed = [(problem.key(), problem) for problem in problems]
        self._load()
        unknown = {key: problem for key, problem in keyed if key not in self._answers}
        try:
            for key, problem in unknown.items():
                self._answers[key] = self._ask(problem)
        finally:
            if unknown:
                self._file.write(self._answers)
        return [self._answers[key] for key, _ in keyed]

    def benchmark_candidates(self, problem: ConvolutionProblem) -> tuple[int, ...]:
        """Return the workspace of every plan `torch.backends.cudnn.benchmark = True` considers.

        They are in the order of the heuristics, fallback list last. On the first call of a
        problem PyTorch drops the plans whose workspace is above the largest block it could get,
        requests the largest workspace of the rest once (halving it, and dropping more, while that
        runs out of memory), times the first `torch.backends.cudnn.benchmark_limit` (10) that run,
        frees it, and from then on requests the workspace of the fastest. Which is the fastest only
        a card can tell, so steady memory lies between the least and the most of those ten.

        Source: `generate_and_filter_plans` and `get_plans_from_find` in Conv_v8.cpp.
        """
        planned = problem.as_planned()
        self._check_dtype(planned)
        modes = ("A", "FALLBACK")
        return tuple(
            num_bytes for mode in modes for num_bytes in _plans(planned, self._description, mode)
        )

    def _ask(self, problem: ConvolutionProblem) -> int:
        planned = problem.as_planned()
        self._check_dtype(planned)
        for mode in ("A", "FALLBACK"):
            for num_bytes in _plans(planned, self._description, mode):
                return num_bytes
        raise BadInputError(
            f"cuDNN {self.cudnn_version} has no plan on {self.card.title} for {problem}. "
            "Take another precision or memory format."
        )

    def _check_dtype(self, problem: ConvolutionProblem) -> None:
        if problem.dtype == "bfloat16" and not self.card.supports_bfloat16:
            raise BadInputError(
                f"{self.card.title} has no bfloat16 convolutions in cuDNN (that takes compute "
                "capability 8.0). Use --precision amp-fp16 or fp32."
            )

    def _load(self) -> None:
        if not self._loaded:
            self._answers |= self._file.read()
            self._loaded = True


@functools.cache
def installed_version() -> str:
    """Return the version of the installed cuDNN, such as "9.19.0".

    Raises:
        BadInputError: cuDNN or its Python front end is not installed.
    """
    number = int(_frontend().backend_version())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


@functools.cache
def _frontend() -> Any:
    try:
        import cudnn

        cudnn.backend_version()
    except (ImportError, OSError, RuntimeError) as error:
        raise BadInputError(
            f"cuDNN cannot be asked for workspaces: {error}. Install the CUDA build of torch and "
            "`pip install nvidia-cudnn-frontend`."
        ) from error
    return cudnn


def _nearest_supported(card: Card) -> tuple[Card, str]:
    """Return the card cuDNN is asked about, and a note when it is not quite the one wanted."""
    oldest = next(
        (oldest for wheel, oldest in OLDEST_CAPABILITY.items() if _is_installed(wheel)), (7, 5)
    )
    if card.compute_capability >= oldest:
        return card, ""
    note = (
        "The installed cuDNN does not support {}.{} ({}); its workspaces are those of {}.{}, the "
        "nearest it knows."
    ).format(*card.compute_capability, card.title, *oldest)
    return replace(card, architecture=architecture(oldest)), note


def _is_installed(wheel: str) -> bool:
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def _device(description: str) -> Any:
    return _frontend().create_device_properties(description)


def _plans(problem: ConvolutionProblem, description: dict[str, object], mode: str) -> Iterator[int]:
    """Yield the workspace of each plan that builds, best first, building each when asked for."""
    cudnn = _frontend()
    graph = _graph(problem, _device(json.dumps(description)))
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([getattr(cudnn.heur_mode, mode)])
        graph.deselect_numeric_notes(_unwanted_notes(problem))
        num_plans = graph.get_execution_plan_count()
    except (RuntimeError, cudnn.cudnnGraphNotSupportedError):
        return
    for index in range(num_plans):
        try:
            graph.build_plan_at_index(index)
        except (RuntimeError, cudnn.cudnnGraphNotSupportedError):
            continue
        yield int(graph.get_workspace_size_plan_at_index(index))


def _unwanted_notes(problem: ConvolutionProblem) -> list[Any]:
    """The numerical notes PyTorch filters by. Source: `filterEngineConfigs` in Conv_v8.cpp."""
    note = _frontend().numerical_note
    unwanted = [note.DOWN_CONVERT_INPUTS]
    if problem.deterministic:
        unwanted.append(note.NONDETERMINISTIC)
    if problem.dtype == "float32" and not problem.allow_tf32:
        unwanted.append(note.TENSOR_CORE)
    return unwanted


def _graph(problem: ConvolutionProblem, device: Any) -> Any:
    """Return cuDNN's graph of the problem: one convolution, computed in float32."""
    cudnn = _frontend()
    single = cudnn.data_type.FLOAT
    dtypes = {"float16": cudnn.data_type.HALF, "bfloat16": cudnn.data_type.BFLOAT16}
    dtype = dtypes.get(problem.dtype, single)
    graph = cudnn.pygraph(
        io_data_type=dtype,
        intermediate_data_type=single,
        compute_data_type=single,
        device_property=device,
    )

    def tensor(shape: Sequence[int]) -> Any:
        strides = packed_strides(shape, channels_last=problem.channels_last)
        return graph.tensor(dim=list(shape), stride=list(strides), data_type=dtype)

    geometry = {
        "padding": list(problem.padding),
        "stride": list(problem.stride),
        "dilation": list(problem.dilation),
    }
    shape: Sequence[int]
    if problem.kind == "forward":
        image, weight = tensor(problem.input), tensor(problem.weight)
        result, shape = graph.conv_fprop(image=image, weight=weight, **geometry), problem.output
    elif problem.kind == "input_gradient":
        loss, weight = tensor(problem.output), tensor(problem.weight)
        result, shape = graph.conv_dgrad(loss=loss, filter=weight, **geometry), problem.input
    else:
        image, loss = tensor(problem.input), tensor(problem.output)
        result, shape = graph.conv_wgrad(image=image, loss=loss, **geometry), problem.weight
    strides = packed_strides(shape, channels_last=problem.channels_last)
    result.set_output(True).set_data_type(dtype).set_dim(list(shape)).set_stride(list(strides))
    return graph


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
