"""One half of a case, in a process of its own: `predict`, or `measure` once that is written."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from benchmarks.gpu.job import Job


def main(arguments: list[str]) -> None:
    """Run `predict` or `measure` for the job on standard input."""
    (what,) = arguments
    job = Job.from_text(sys.stdin.read())
    if what == "predict":
        _predict(job)
    else:
        _measure(job)


def _predict(job: Job) -> None:
    from benchmarks.gpu.predict import predict

    partial = job.prediction_path.with_suffix(".part")
    partial.write_text(json.dumps(predict(job.case, job.card), indent=1) + "\n")
    partial.replace(job.prediction_path)


def _measure(job: Job) -> None:
    from benchmarks.gpu.measured import measured
    from memplan.trace.history import SUFFIX, Recording

    # Read here, so that what is written beside the measurement was there before it.
    prediction: dict[str, Any] = json.loads(job.prediction_path.read_text())
    from benchmarks.gpu.machine import machine_facts

    facts, snapshot = measured(job, prediction)
    recording = Recording(
        facts={
            "case": job.case.to_json(),
            "group": job.case.group,
            "machine": machine_facts(job.device),
            "prediction": prediction,
            "measured": facts,
        },
        snapshot=snapshot,
    )
    recording.save(job.folder / (job.stem + SUFFIX))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
