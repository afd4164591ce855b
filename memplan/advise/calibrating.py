"""Measures a card of this machine, so that predictions for its kind need no catalogue figures."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from memplan.advise.question import DEFAULT_WORKLOAD, silent, versions
from memplan.device import nvml
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.cudnn import WorkspaceOracle
from memplan.errors import BadInputError, DeviceOutOfMemoryError
from memplan.fit.predictor import Say
from memplan.planner.rates import Stretch, fit_rates, stretches_of
from memplan.registry import make_workload
from memplan.spec import PRECISIONS, StepSpec
from memplan.tape import Tape

# Two sizes, so that launches and rates are separated; small enough for a card of 6 GB.
_BATCHES = (1, 8)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A training whose stretches were timed on a card."""

    workload: str
    arguments: Mapping[str, Any]
    micro_batch_size: int
    settings: StepSpec
    seconds: Mapping[str, Sequence[float]]
    """Repeats by `section/phase`, as `memplan.trace.measure.Measurement` has them."""

    def record(self) -> Tape:
        """Return the tape of what was timed."""
        from memplan.trace.record import record

        made = make_workload(self.workload, dict(self.arguments))
        return record(made, self.micro_batch_size, self.settings)


def stretches(timed: Sequence[Timed], card: Card) -> list[Stretch]:
    """Return what was timed beside what it had to compute and move, from fresh recordings."""
    found = []
    for one in timed:
        tape = one.record()
        oracle = WorkspaceOracle(card, benchmark=one.settings.cudnn_benchmark)
        medians = {name: statistics.median(values) for name, values in one.seconds.items()}
        found += stretches_of(tape, card, _workspace(oracle, tape), medians)
    return found


def _workspace(oracle: WorkspaceOracle, tape: Tape) -> Any:
    import numpy as np

    return np.array(oracle.bytes_many(tape.convolutions), dtype=np.int64)


def calibration_from(
    one: nvml.PresentCard,
    timed: Sequence[Timed],
    context_bytes: Sequence[int],
    by_phase: Mapping[str, int],
    library_versions: Mapping[str, str],
) -> Calibration:
    """Return the calibration that measurements of a card come to.

    Args:
        one: the card.
        timed: what was timed on it.
        context_bytes: held outside the allocator after each life.
        by_phase: after each first use of a library; see `outside_by_phase`.
        library_versions: that it was measured under.

    Raises:
        BadInputError: nothing was measured.
    """
    if not context_bytes:
        raise BadInputError(f"No life ran on {one.device_name}, so nothing is known of it.")
    found = stretches(timed, one.card)
    fitted = fit_rates(found)
    rates = fitted.rates
    handles = {
        library: max(0, by_phase[library] - by_phase[before])
        for before, library in (("first_kernel", "cublas"), ("cublas", "cudnn"))
        if {before, library} <= by_phase.keys()
    }
    return Calibration(
        card=one.card.name,
        device_name=one.device_name,
        capacity_bytes=one.capacity_bytes,
        driver=one.driver_version,
        versions=dict(library_versions),
        context_bytes=round(statistics.median(context_bytes)),
        context_uncertainty_bytes=(max(context_bytes) - min(context_bytes) + 1) // 2,
        context_bytes_by_phase={**by_phase, "step": round(statistics.median(context_bytes))},
        library_handle_bytes=handles,
        arithmetic_fraction={name: rates.arithmetic_fraction(name) for name in fitted.precisions},
        bandwidth_fraction=rates.bandwidth_fraction,
        launch_seconds=rates.launch_seconds,
        measured_on=dt.datetime.now(dt.UTC).date().isoformat(),
        num_measurements=len(found),
        median_error_fraction=fitted.median_error_fraction,
    )


def calibrate(index: int, *, say: Say = silent) -> Calibration:
    """Return what is measured now on a card of this machine, in about a minute.

    Lives of the default workload run in processes of their own, one a precision and batch.

    Args:
        index: of the card, as `memplan gpus` shows it.
        say: called with a line on what is being done.

    Raises:
        BadInputError: there is no such card.
        DeviceOutOfMemoryError: the card has no room; other programs may hold it.
    """
    one = nvml.card_at(index, option="--calibrate")
    _check_torch(one)
    say("Measuring memory outside the allocator")
    by_phase = _in_child(_outside, index)
    timed, context = [], []
    for precision in PRECISIONS:
        if precision == "amp-bf16" and not one.card.supports_bfloat16:
            continue
        for batch in _BATCHES:
            say(f"Timing {DEFAULT_WORKLOAD}, {precision}, batch {batch}")
            settings = StepSpec(precision=precision)
            found = _in_child(_life, index, batch, settings)
            if found.out_of_memory:
                raise DeviceOutOfMemoryError(
                    f"{one.device_name} has no room for {DEFAULT_WORKLOAD} at batch {batch}: "
                    f"{found.out_of_memory.splitlines()[0]} Stop what else runs on it.",
                    0,
                )
            context.append(found.outside_bytes["step"])
            timed.append(
                Timed(
                    workload=DEFAULT_WORKLOAD,
                    arguments={},
                    micro_batch_size=batch,
                    settings=settings,
                    seconds=found.seconds,
                )
            )
    say("Fitting rates")
    return calibration_from(one, timed, context, by_phase, measured_versions())


def measured_versions() -> dict[str, str]:
    """Return the versions under which something is measured on a card."""
    import torch

    return {**versions(), "cuda": torch.version.cuda or "none"}


def _check_torch(one: nvml.PresentCard) -> None:
    import torch

    if not torch.cuda.is_available():
        raise BadInputError(
            f"PyTorch {torch.__version__} cannot use {one.device_name}: its driver is too old or "
            "the build has no CUDA. Install one that fits, then calibrate again."
        )


def _in_child(function: Callable[..., Result], index: int, *arguments: Any) -> Result:
    """Return a function's result from a process that has never used CUDA.

    Raises:
        BadInputError: the process died.
    """
    # PyTorch must count cards as NVML does, and load kernels as it does by default.
    wanted = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_MODULE_LOADING": "LAZY"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, index, *arguments).result()
    except BrokenProcessPool:
        raise BadInputError(
            f"The process that measured card {index} died. See the driver's log (dmesg)."
        ) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _outside(index: int) -> dict[str, int]:
    import torch

    from memplan.trace.measure import outside_by_phase

    return outside_by_phase(torch.device("cuda", index))


def _life(index: int, batch: int, settings: StepSpec) -> Any:
    import torch

    from memplan.trace.measure import Timing, measure

    workload = make_workload(DEFAULT_WORKLOAD)
    device = torch.device("cuda", index)
    found, _ = measure(workload, batch, settings, device, timing=Timing(most_seconds=5))
    return found
