"""What a case came to on the device."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from benchmarks.gpu import libraries, peers
from benchmarks.gpu.job import Job
from memplan.trace.measure import Measurement, Timing, measure, outside_by_phase
from memplan.trace.snapshot import Snapshot

# Enough for a median with a spread; a slow step ends it earlier.
_TIMING = Timing(warmup=3, repeats=10, most_seconds=12.0)
_ON_CPU = Timing(warmup=1, repeats=2, most_seconds=5.0)


def measured(job: Job, prediction: dict[str, Any]) -> tuple[dict[str, Any], Snapshot | None]:
    """Return what was read, as plain values, and the allocator's history where there is one."""
    device, case = torch.device(job.device), job.case
    if case.kind == "life":
        found, snapshot = _life(job, case.micro_batch_size)
        return found.to_json(), snapshot
    if case.kind == "context":
        return {"outside_bytes": outside_by_phase(device)}, None
    if case.kind == "convolutions":
        return libraries.convolutions(job), None
    if case.kind == "batch_norm":
        return libraries.batch_norms(job), None
    limit = int(prediction["allocator_limit_bytes"])
    if case.kind == "budget":
        largest = int(prediction["largest_batch"])
        return {"runs": [run(job, batch, limit) for batch in (largest, largest + 1) if batch]}, None
    start = time.perf_counter()
    answer = peers.ask(case.peer, job, limit, largest=int(prediction["largest_batch"]))
    answer["seconds"] = time.perf_counter() - start
    chosen = answer.get("chosen_batch")
    if isinstance(chosen, int) and chosen > 0:
        answer["run"] = run(job, chosen, limit)
    return answer, None


def _life(job: Job, batch: int, limit: int | None = None) -> tuple[Measurement, Snapshot | None]:
    question = job.case.question(job.card)
    return measure(
        question.made,
        batch,
        question.step_spec,
        torch.device(job.device),
        accumulation_steps=job.case.accumulation_steps,
        memory_limit_bytes=limit,
        timing=_ON_CPU if job.device == "cpu" else _TIMING,
    )


def run(job: Job, batch: int, limit_bytes: int) -> dict[str, Any]:
    """Return what a batch took in a fresh process with so much for the allocator."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(_run, job.to_text(), batch, limit_bytes).result()
    except BrokenProcessPool:
        return {"micro_batch_size": batch, "failure": "the process died"}
    return {"micro_batch_size": batch, **found}


def _run(text: str, batch: int, limit_bytes: int) -> dict[str, Any]:
    found, _ = _life(Job.from_text(text), batch, limit_bytes)
    return {**found.to_json(), "ran": not found.out_of_memory}
