"""Reserved memory over many steps of varying crowds, beside the few steps a prediction replays.

A prediction replays three to six steps, each batch fuller than the one before. Here the same
training is replayed over many steps whose fullest images are drawn at random, with a smaller
last batch in each epoch, and its reserved memory compared.
"""

from __future__ import annotations

import numpy as np

from benchmarks.common import publish
from memplan.device import catalogue
from memplan.device.life import Life, Program
from memplan.device.replay import Simulator
from memplan.fit.affine import fit
from memplan.fit.predictor import Predictor
from memplan.parallel import map_processes
from memplan.planner.crowd import Crowd
from memplan.registry import make_workload
from memplan.tape import PERIODS, Int64, Tape
from memplan.trace.fake_cuda import warm_up
from memplan.trace.record import record
from memplan.workload import Workload

CASES = (
    ("yolov9-t", 8, 5),
    ("yolov9-t", 32, 200),
    ("yolov9-s", 16, 20),
    ("yolov9-c", 4, 5),
    ("gelan-c", 16, 100),
    ("gelan-t", 16, 60),
)
CARD = "a100-80gb"
NUM_STEPS = 100
STEPS_AN_EPOCH = 25
_SEED = 0


def random_objects(crowd: Crowd, batch: int) -> list[int]:
    """Return the fullest image's objects for each of many steps."""
    draws = np.random.default_rng(_SEED).choice(crowd.objects, (NUM_STEPS, batch))
    return [int(most) for most in draws.max(axis=1)]


def reserved(case: tuple[str, int, int]) -> tuple[int, int, int]:
    """Return reserved bytes predicted, over many steps, and with smaller last batches too."""
    name, batch, mean = case
    workload = make_workload(name, {"objects_per_image": mean})
    simulator = Simulator(catalogue.card(CARD))

    def record_many(batches: object) -> dict[int, Tape]:
        return {size: record(workload, size) for size in batches}  # type: ignore[attr-defined]

    last = max(2, batch // 2 - 1)
    program_of = fit(record_many, last, batch)
    crowd = Crowd.around(mean)

    def replayed(steps: int, objects: list[int], *, ends_small: bool) -> int:
        program = Program(program_of.piece(batch).low, Life(num_steps=steps))
        sizes = _sizes(simulator, program, program_of.tape(batch), objects)
        if ends_small:
            small = _sizes(simulator, program, program_of.tape(last), objects)
            is_last = (program.steps % STEPS_AN_EPOCH == STEPS_AN_EPOCH - 1) & (
                program.periods == PERIODS.index("steady_step")
            )
            sizes = np.where(is_last, small, sizes)
        return simulator.peaks(program, sizes).reserved_peak_bytes

    drawn = random_objects(crowd, batch)
    return (
        _predicted(workload, simulator, crowd, batch),
        replayed(NUM_STEPS, drawn, ends_small=False),
        replayed(NUM_STEPS, drawn, ends_small=True),
    )


def _predicted(workload: Workload, simulator: Simulator, crowd: Crowd, batch: int) -> int:
    predictor = Predictor(
        lambda size: record(workload, size),
        [simulator],
        Life(),
        batch,
        batch,
        objects=crowd.steps,
    )
    return predictor.peaks(0, batch).reserved_peak_bytes


def _sizes(simulator: Simulator, program: Program, tape: Tape, objects: list[int]) -> Int64:
    return program.sizes(
        tape.events.requested_bytes,
        simulator.device_bytes(tape.convolutions, tape.launches),
        objects,
    )


def main() -> None:
    """Replay every case and publish the differences."""
    warm_up()
    rows = []
    made = map_processes(reserved, CASES, doing="replaying many steps")
    for (name, batch, mean), found in zip(CASES, made, strict=True):
        predicted, many, small = found
        rows.append(
            (
                name,
                str(batch),
                str(mean),
                f"{predicted / 1e9:.3f}",
                f"{many / 1e9:.3f}",
                f"{predicted / many - 1:+.2%}",
                f"{small / 1e9:.3f}",
                f"{predicted / small - 1:+.2%}",
            )
        )
    header = (
        "Model", "Batch", "Objects", "Predicted GB", "Many steps", "Error", "Small last", "Error",
    )  # fmt: skip
    publish(
        "many_steps",
        f"Reserved memory as predicted beside {NUM_STEPS} random steps",
        header,
        rows,
        [
            "Both are simulated: this measures what replaying a few steps leaves out, not truth.",
            "Objects: mean in an image (Poisson); the fullest image of each batch decides. "
            "Validation before the last step.",
            f"Small last: one batch in {STEPS_AN_EPOCH} has half the images.",
            f"Card: {CARD}; 640 px, amp-fp16, SGD.",
        ],
    )


if __name__ == "__main__":
    main()
