"""What another cuDNN changes: the same steps with the workspaces of several versions.

    pip install --no-deps --target ~/.cache/memplan/cudnn/9.12 'nvidia-cudnn-cu13==9.12.*'
    python -m benchmarks.cudnn_versions --cudnn 9.12

Steps are recorded once; each version is asked about each card. Nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import numpy as np

from benchmarks.common import publish
from benchmarks.gpu.cases import Case
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.cudnn import installed_version
from memplan.device.cudnn_beside import CudnnBeside, beside
from memplan.device.life import Life, Program
from memplan.device.replay import Simulator
from memplan.errors import BadInputError, UsageError
from memplan.tape import Int64, Tape
from memplan.units import MIB

CARDS = ("t4", "rtx-3060", "rtx-3090", "a100-80gb", "h100-80gb", "rtx-5090")
CASES = (
    Case(workload="yolov9-s", micro_batch_size=16),
    Case(workload="yolov9-c", micro_batch_size=8),
    Case(workload="yolov9-e", micro_batch_size=4),
    *(
        Case(workload=f"torchvision:{name}", image_size=224, micro_batch_size=32, precision="fp32")
        for name in ("vgg16", "resnet50", "regnet_y_400mf", "mnasnet1_0", "mobilenet_v2")
    ),
)


def _rows(versions: tuple[CudnnBeside, ...]) -> Iterator[tuple[str, ...]]:
    for case in CASES:
        for name in CARDS:
            card = catalogue.card(name)
            question = case.question(card)
            if name == CARDS[0]:
                tape = question.record(case.micro_batch_size, question.step_spec)
                program = Program(tape, Life())
            found = [_peak(card, cudnn, tape, program) for cudnn in (None, *versions)]
            assert found[0] is not None, name
            size, answers = found[0]
            yield (
                case.name,
                name,
                f"{size / MIB:.0f}",
                *(
                    f"{one[0] / MIB:.0f} ({one[0] / size - 1:+.1%})" if one else "-"
                    for one in found[1:]
                ),
                *(
                    f"{np.sum(one[1] != answers)}/{len(answers)}" if one else "-"
                    for one in found[1:]
                ),
            )


def _peak(
    card: Card, cudnn: CudnnBeside | None, tape: Tape, program: Program
) -> tuple[int, Int64] | None:
    """Return reserved bytes and workspaces; None where the version does not take the card."""
    simulator = Simulator(card, cudnn=cudnn)
    try:
        device = simulator.device_bytes(tape.convolutions, tape.launches)
    except BadInputError:
        return None
    requested = program.sizes(tape.events.requested_bytes, device)
    peaks = simulator.peaks(program, requested, tape.convolutions)
    return peaks.reserved_peak_bytes, device.convolutions


def _named(version: str) -> CudnnBeside:
    found = beside(version)
    if found is None:
        raise UsageError(f"--cudnn {version} is the installed one, or is kept nowhere.")
    return found


@click.command()
@click.option("--cudnn", "texts", multiple=True, required=True, metavar="VERSION", help="Beside.")
def main(texts: tuple[str, ...]) -> None:
    """Write the table of peaks by version."""
    versions = tuple(map(_named, texts))
    names = [one.version for one in versions]
    publish(
        "cudnn_versions",
        "Reserved peaks by version of cuDNN, MiB",
        (
            *("Case", "Card", installed_version(), *names),
            *(f"other in {name}" for name in names),
        ),
        list(_rows(versions)),
        [
            "Predicted: one recording, each version asked about each described card.",
            "The last columns count convolutions that get another workspace than from the "
            "installed version. A dash: the version does not take the card's description.",
        ],
    )


if __name__ == "__main__":
    main()
