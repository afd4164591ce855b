"""cuDNN asked for workspaces in a child process, on a phantom card.

Where cuDNN finds no driver at all, it leaves out engines that a process with a card has, above all
the one that gives a window of one pixel to cuBLASLt: MobileNetV2 and EfficientNet-B0 in TF32 then
seem to take a fifth more than `nvidia-smi` showed on an A100 (batch 128: 13.5 GiB instead of
11.1). On a phantom card it plans with them, and cuBLASLt wants all the workspace that it may have
(`memplan.device.one_by_one`). What it answers about a described card does not depend on which card
the phantom is.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from memplan.convolution import ConvolutionProblem
from memplan.device import catalogue, cudnn_plans
from memplan.device.cudnn_descriptors import (
    FOLDER_VARIABLE,
    open_compilers,
    open_sublibraries,
    version_number,
)
from memplan.device.cudnn_plans import Mode, Note, Plan
from memplan.errors import BadInputError, MemplanError
from memplan.processes import answer_seconds, num_processes

# With three spatial dimensions PyTorch never takes this engine for these kinds, from the first
# cuDNN version to before the last. Source: `plan_errata_exception` in Conv_v8.cpp.
_ERRATA_ENGINE = 23
_ERRATA_VERSIONS = {"forward": (90800, 91500), "input_gradient": (8000, 1 << 30)}


_FIELDS = [one.name for one in fields(ConvolutionProblem)]
# For fewer a further copy is not worth its 70 ms.
_FEWEST_A_COPY = 500

# The children of this process, or those that a forked process has from its parent, by the folder
# of the cuDNN that they ask; the installed one has none.
_children: dict[Path | None, Any] = {}


def start() -> None:
    """Start the child, so that it is there when it is asked; forked processes share it then."""
    with suppress(MemplanError):  # told when it is asked
        _child(None)


@functools.cache
def asked_by() -> str:
    """Return a text that changes when the phantom does, and maybe cuDNN's answers with it.

    That is its libraries, which hold what cuBLASLt answers, and in a process that itself runs on a
    phantom card what that card's description says of it.
    """
    from memplan.phantom import control
    from memplan.phantom.build import library_folder

    digest = hashlib.sha256()
    if control.is_loaded():
        facts = os.environ.get("PHANTOM_DEVICE", "").split(";")
        digest.update(";".join(one for one in facts if one.startswith("cublaslt_")).encode())
    with suppress(MemplanError):  # told when it is asked
        for path in sorted(one for one in library_folder().rglob("*.so*") if one.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def workspaces(
    device: str,
    problems: Sequence[ConvolutionProblem],
    *,
    every: bool,
    folder: Path | None = None,
) -> list[tuple[int, ...]]:
    """Return the workspaces of plans for each problem, in the order PyTorch tries them, bytes.

    Takes 0.1 s, the first time half a second, and 0.2 ms a problem; 2 ms where all plans count.

    Args:
        device: the card asked about, as cuDNN's JSON text.
        problems: all different.
        every: whether all plans count; else the first that PyTorch would take.
        folder: of the cuDNN that is asked; None asks the installed one.

    Raises:
        BadInputError: no phantom card is to be had here, or cuDNN does not accept the card.
        MemplanError: cuDNN failed, in a second process as well.
    """
    from memplan.phantom import control

    asked = [{name: getattr(one, name) for name in _FIELDS} for one in problems]
    arguments: dict[str, Any] = {"device": device, "every": every, "problems": asked}
    is_here = folder is None and control.is_loaded()
    found = answer(**arguments) if is_here else _asked(arguments, folder)
    return [tuple(one) for one in found]


def _asked(arguments: dict[str, Any], folder: Path | None) -> list[list[int]]:
    """Return what a copy of the child answers; where cuDNN failed or it died, what another does.

    A process that has planned many convolutions may leave out engines for good that one which has
    planned none takes: 21 of 6,615 answers of one were wrong, which six others gave right. So each
    question meets cuDNN as just loaded, in a copy that takes 70 ms.
    """
    seconds = answer_seconds()
    try:
        found = _child(folder).call(answers, arguments, seconds=seconds)
    except BadInputError:
        raise
    except MemplanError:
        if folder in _children:
            _children.pop(folder).close()
        found = _child(folder).call(answers, arguments, seconds=seconds)
    return list(found)


def _child(folder: Path | None) -> Any:
    from memplan.phantom.child import PhantomChild

    if folder not in _children or _children[folder].has_ended:
        owner = os.getpid()
        variables = {FOLDER_VARIABLE: "" if folder is None else str(folder)}
        child = PhantomChild(catalogue.cards()[0], imports=(__name__,), variables=variables)
        _children[folder] = child

        def end() -> None:
            if os.getpid() == owner:
                child.close()

        atexit.register(end)
    return _children[folder]


def answers(*, device: str, problems: list[dict[str, Any]], every: bool) -> list[list[int]]:
    """Return what `answer` does of many problems, from copies of this process side by side.

    Raises:
        MemplanError: a copy died.
    """
    count = min(num_processes(), len(problems) // _FEWEST_A_COPY)
    if count < 2:
        return answer(device=device, problems=problems, every=every)
    size = -(-len(problems) // count)
    parts = [problems[begin : begin + size] for begin in range(0, len(problems), size)]
    with ProcessPoolExecutor(len(parts), get_context("fork")) as copies:
        found = [copies.submit(answer, device=device, problems=part, every=every) for part in parts]
        try:
            return [one for each in found for one in each.result()]
        except BrokenProcessPool:
            raise MemplanError("cuDNN ended the process in which it was asked.") from None


def answer(*, device: str, problems: list[dict[str, Any]], every: bool) -> list[list[int]]:
    """Return what cuDNN answers in this process; see `workspaces`."""
    open_sublibraries()
    open_compilers()
    on = cudnn_plans.device(device)
    found = []
    for one in problems:
        problem = ConvolutionProblem(**one).as_planned()
        plans = (plan.workspace_bytes for plan in _taken(problem, on))
        found.append(list(plans if every else itertools.islice(plans, 1)))
    return found


def _taken(problem: ConvolutionProblem, on: int) -> Iterator[Plan]:
    """Yield the plans PyTorch would take, first the one it does take without benchmark."""
    lists = (cudnn_plans.plans(problem, on, mode) for mode in (Mode.INSTANT, Mode.FALLBACK))
    return (plan for plan in itertools.chain.from_iterable(lists) if not _ruled_out(plan, problem))


def _ruled_out(plan: Plan, problem: ConvolutionProblem) -> bool:
    """Return whether PyTorch skips a plan that cuDNN can build."""
    unwanted = {Note.DOWN_CONVERT_INPUTS}
    if problem.deterministic:
        unwanted.add(Note.NONDETERMINISTIC)
    if problem.dtype == "float32" and not problem.allow_tf32:
        unwanted.add(Note.TENSOR_CORE)
    if not plan.notes.isdisjoint(unwanted):
        return True
    if len(problem.stride) < 3 or plan.engine != _ERRATA_ENGINE:
        return False
    first, last = _ERRATA_VERSIONS.get(problem.kind, (0, 0))
    return first <= version_number() < last
