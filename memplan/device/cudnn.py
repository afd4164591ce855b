"""The workspace cuDNN asks for in a convolution, on any card, with no GPU and no driver.

cuDNN plans convolutions from a description of the device, and the description need not be of a
device that is there. It is asked on a phantom card (`memplan.device.cudnn_asking`), for where it
finds no driver it leaves engines out. It is asked what PyTorch asks, and PyTorch's choice is
taken: the engine configurations of heuristic mode *instant*, in order, then those of the fallback
list; those that PyTorch's settings rule out are skipped; the first that builds is it. Its
workspace is requested from the caching allocator inside the operator, after the output, and freed
at its end; a workspace of 0 bytes requests nothing.

Which convolutions reach cuDNN is the recorder's business. Every problem given here is taken to:
`use_cudnn` and `use_cudnn_depthwise` of aten/src/ATen/native/Convolution.cpp said yes (so no
dilated or depthwise convolution that PyTorch gives to its own kernels), tensors are packed in one
layout (PyTorch makes them so first; that copy is not part of the workspace), and addresses are
aligned as the caching allocator aligns them. A transposed convolution is its mirror image: its
forward pass is an "input_gradient" whose `input` is the transposed convolution's output.

Source: aten/src/ATen/native/cudnn/Conv_v8.cpp (PyTorch 2.11): `run_single_conv`,
`get_configs_from_heuristics`, `filterEngineConfigs`, `plan_errata_exception`, `try_configs`.

What a convolution does whose workspace finds no memory is told by `memplan.device.plan_fallback`.

Limits: a plan that builds but fails when it runs makes PyTorch take the next one, which is not
modelled. `TORCH_CUDNN_USE_HEURISTIC_MODE_B` and a file named by `CUDNN_ERRATA_JSON_FILE` are not
followed. `CUDNN_CONV_WSCAP_DBG` caps cuDNN's older interface only: the plans asked for here are the
same with and without it (tried on 18 problems, cuDNN 9.19).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata

from memplan.convolution import ConvolutionProblem
from memplan.device import cudnn_asking
from memplan.device.card import Card
from memplan.device.catalogue import architecture
from memplan.device.cudnn_beside import CudnnBeside
from memplan.device.cudnn_descriptors import installed_version
from memplan.device.workspace_cache import WorkspaceCache
from memplan.errors import BadInputError

__all__ = ["BENCHMARK_LIMIT", "Benchmark", "WorkspaceOracle", "installed_version"]

# Builds for CUDA 13 begin at Turing; those for CUDA 12 still know Pascal and Volta.
# Source: cuDNN 9 support matrix, and the CUDA 13.0 release notes.
_OLDEST_CAPABILITY = {"nvidia-cudnn-cu13": (7, 5), "nvidia-cudnn-cu12": (5, 0)}

# `torch.backends.cudnn.benchmark_limit` as released. Source: aten/src/ATen/Context.h.
BENCHMARK_LIMIT = 10


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What one problem takes under `torch.backends.cudnn.benchmark`, in bytes of workspace."""

    trial_bytes: int
    """Requested and freed once, on the first call of the problem; then the cache is emptied."""
    least_bytes: int
    """The least the plan that proves fastest requests in every call, the first included."""
    most_bytes: int
    """The most it may request."""


class WorkspaceOracle:
    """Answers, for one card and the installed cuDNN, how many bytes a convolution's workspace has.

    Answers are kept in memory and in a file under `$XDG_CACHE_HOME/memplan` (`~/.cache/memplan`),
    one for each cuDNN version and card; `MEMPLAN_CACHE=off` keeps them in memory only.

    Args:
        card: the card to answer for.
        cudnn: the one that is asked in place of the installed one.
        benchmark: answer as under `torch.backends.cudnn.benchmark = True`, where only the card
            can tell which plan is fastest: `bytes` is then the most that any of those that
            PyTorch times would request.

    Attributes:
        source: where the answers come from, for a report.
        note: what the user must know about them; empty when there is nothing.

    Raises:
        BadInputError: cuDNN is missing or too old.
    """

    def __init__(
        self, card: Card, cudnn: CudnnBeside | None = None, *, benchmark: bool = False
    ) -> None:
        self.card = card
        self.cudnn_version = installed_version() if cudnn is None else cudnn.version
        self._folder = None if cudnn is None else cudnn.folder
        described, self.note = _nearest_supported(card)
        self.source = f"cuDNN {self.cudnn_version} asked about {described.title}"
        self.benchmark = benchmark
        description = described.cudnn_description()
        self._device = json.dumps(description)
        # The workspace of the plan PyTorch takes, and those of all it times under benchmark.
        self._chosen, self._timed = (
            _Answers(
                WorkspaceCache.of(
                    description,
                    self.cudnn_version,
                    benchmark=every,
                    asked_by=cudnn_asking.asked_by(),
                ),
                partial(self._asked, every=every),
            )
            for every in (False, True)
        )

    def bytes(self, problem: ConvolutionProblem) -> int:
        """Return the workspace of one convolution, bytes as requested from the allocator.

        Raises:
            BadInputError: cuDNN has no plan for it on this card.
        """
        return self.bytes_many([problem])[0]

    def bytes_many(self, problems: Iterable[ConvolutionProblem]) -> list[int]:
        """Return the workspace of each convolution, asking about equal ones once.

        About 0.2 ms for each different problem the caches do not know (several ms under benchmark),
        after 0.2 s for the first of a process.

        Raises:
            BadInputError: cuDNN has no plan for one of them on this card.
        """
        if self.benchmark:
            return [answer.most_bytes for answer in self.benchmark_many(problems)]
        return [answer[0] for answer in self._chosen.of(problems)]

    def benchmark_many(
        self, problems: Iterable[ConvolutionProblem], available_bytes: int | None = None
    ) -> list[Benchmark]:
        """Return what each problem takes under `torch.backends.cudnn.benchmark = True`.

        On the first call of a problem PyTorch drops the plans whose workspace is above the
        largest block it could get, requests the largest workspace of the rest once, times the
        first `BENCHMARK_LIMIT` that run, frees it, and empties its cache. From then on it
        requests the workspace of the fastest. Which that is only a card can tell, so the answer
        is a range. `most_bytes` bounds it from above whatever was dropped: what is above the
        limit is dropped, so the rest lies below what was dropped. `least_bytes` bounds it from
        below while all the timed plans run.

        Args:
            problems: equal ones are asked about once.
            available_bytes: the largest block there could be: what the device has free, or the
                largest cached block if that is larger. None drops nothing.

        Raises:
            BadInputError: cuDNN has no plan for one of them on this card, or none within the
                bytes available.

        Source: `generate_and_filter_plans`, `get_plans_from_find` and `run_single_conv` in
        Conv_v8.cpp; `time_sorted_plan` of cudnn-frontend.

        Limits: where not even the trial request finds room, PyTorch halves it and drops more.
        """
        problems = list(problems)
        found = self._timed.of(problems)
        return [
            self._benchmark(problem, candidates, available_bytes)
            for problem, candidates in zip(problems, found, strict=True)
        ]

    def plan_bytes(self, problem: ConvolutionProblem) -> tuple[int, ...]:
        """Return the workspaces of every plan, in the order PyTorch tries them, bytes.

        Asked where the first finds no memory. Under benchmark the order is that of the plans'
        times, which only the card can tell: the largest comes first then, so that what finds room
        bounds what would be taken from above. Takes 5 to 35 ms where the caches do not know.

        Raises:
            BadInputError: cuDNN has no plan for it on this card.
        """
        (found,) = self._timed.of([problem])
        return tuple(sorted(set(found), reverse=True)) if self.benchmark else found

    def _benchmark(
        self, problem: ConvolutionProblem, candidates: tuple[int, ...], available_bytes: int | None
    ) -> Benchmark:
        fitting = [
            candidate
            for candidate in candidates
            if available_bytes is None or candidate <= available_bytes
        ]
        if not fitting:
            raise self._no_plan(problem)
        timed = fitting[:BENCHMARK_LIMIT]
        return Benchmark(max(fitting), min(timed), max(timed))

    def _asked(
        self, problems: Sequence[ConvolutionProblem], *, every: bool
    ) -> list[tuple[int, ...]]:
        """Return the workspaces of the plan PyTorch takes, or of every plan, for each problem."""
        for problem in problems:
            if problem.dtype == "bfloat16" and not self.card.supports_bfloat16:
                raise BadInputError(
                    f"{self.card.title} has no bfloat16 convolutions in cuDNN (that takes compute "
                    "capability 8.0). Use --precision amp-fp16 or fp32."
                )
        found = cudnn_asking.workspaces(self._device, problems, every=every, folder=self._folder)
        for problem, answer in zip(problems, found, strict=True):
            if not answer:
                raise self._no_plan(problem)
        return found

    def _no_plan(self, problem: ConvolutionProblem) -> BadInputError:
        return BadInputError(
            f"cuDNN {self.cudnn_version} has no plan on {self.card.title} for {problem}. "
            "Take another precision or memory format."
        )


class _Answers:
    """Answers by problem, from memory, else from a file, else from cuDNN."""

    def __init__(
        self,
        file: WorkspaceCache,
        ask: Callable[[Sequence[ConvolutionProblem]], list[tuple[int, ...]]],
    ) -> None:
        self._file = file
        self._ask = ask
        self._known: dict[ConvolutionProblem, tuple[int, ...]] = {}
        self._by_key: dict[str, tuple[int, ...]] | None = None

    def of(self, problems: Iterable[ConvolutionProblem]) -> list[tuple[int, ...]]:
        problems = list(problems)
        if self._by_key is None:
            self._by_key = self._file.read()
        unknown = {one.key(): one for one in problems if one not in self._known}
        unknown = {key: one for key, one in unknown.items() if key not in self._by_key}
        if unknown:
            found = self._ask(list(unknown.values()))
            new = dict(zip(unknown, found, strict=True))
            self._by_key |= new
            self._file.add(new)
        for problem in problems:
            if problem not in self._known:
                self._known[problem] = self._by_key[problem.key()]
        return [self._known[problem] for problem in problems]


def _nearest_supported(card: Card) -> tuple[Card, str]:
    """Return the card cuDNN is asked about, and a note when it is not quite the one wanted."""
    oldest = next(
        (oldest for wheel, oldest in _OLDEST_CAPABILITY.items() if _is_installed(wheel)), (7, 5)
    )
    if card.compute_capability >= oldest:
        return card, ""
    note = (
        "cuDNN {}, which was asked, does not support the {} ({}.{}): that card runs an older one, "
        "whose workspaces may be others. Those given are of {}.{}, the nearest it knows."
    ).format(installed_version(), card.title, *card.compute_capability, *oldest)
    return replace(card, architecture=architecture(oldest)), note


def _is_installed(wheel: str) -> bool:
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True
