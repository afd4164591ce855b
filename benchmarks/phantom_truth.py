"""Predictions beside PyTorch's own host code on phantom cards, event by event.

Every case's life is predicted, then run by the unmodified PyTorch on a CUDA runtime that counts
memory and computes nothing (`memplan.phantom`), in a process of its own. Both lists of blocks are
aligned. This is not a measurement: no card is involved, and both sides ask the same cuDNN planner
about the same described card, so that convolution workspaces, counted apart, prove little.

Rows are kept in `benchmarks/results/phantom_truth.json`; a filtered run renews its own rows.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import click

from benchmarks.common import RESULTS, publish
from benchmarks.gpu.cases import Case, matching
from benchmarks.phantom_life import IMPORTS, Comparison, Told, compare, predicted_life
from benchmarks.phantom_sizes import noted_sizes
from memplan.device import catalogue
from memplan.errors import MemplanError
from memplan.phantom.child import PhantomChild
from memplan.tape import Tape

KEPT = RESULTS / "phantom_truth.json"
# One of each architecture: 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0.
CARDS = ("t4", "a100-80gb", "rtx-3090", "rtx-4090", "h100-80gb", "b200", "rtx-5090")
YOLO = (
    "yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-cf", "yolov9-e", "yolov9",
    "gelan-t", "gelan-s", "gelan-m", "gelan-c", "gelan-e", "gelan", "yolov7-af",
    "gelan-c-seg", "gelan-c-dseg", "yolov9-c-dseg",
)  # fmt: skip
SETTINGS = (
    {"memory_format": "channels-last"},
    {"precision": "fp32"},
    {"precision": "amp-bf16"},
    {"precision": "fp32", "optimizer": "AdamW"},
    {"optimizer": "Adam"},
    {"recompute": "all"},
    {"lean": True},
    {"deterministic": True},
    {"allocator": "expandable_segments:True"},
    {"accumulation_steps": 2},
)
_PHANTOM = "PyTorch's own host code on a phantom card"


def cases() -> list[Case]:
    """Return every case, by group: `yolo`, `settings`, `classifiers`, `detectors`."""
    import torchvision

    plain = Case(micro_batch_size=4)
    yolo = [replace(plain, workload=name, group="yolo") for name in YOLO]
    settings = [replace(plain, **more, group="settings") for more in SETTINGS]  # type: ignore[arg-type]
    names = torchvision.models.list_models(module=torchvision.models)
    classifiers = (case for name in names for case in _classifier(name))
    detectors = torchvision.models.list_models(module=torchvision.models.detection)
    return [*yolo, *settings, *classifiers, *map(_detector, detectors)]


def _classifier(name: str) -> Iterator[Case]:
    side = 299 if name == "inception_v3" else 224
    plain = Case(
        workload=f"torchvision:{name}", image_size=side, micro_batch_size=16, group="classifiers"
    )
    yield plain
    if name in {"resnet50", "vit_b_16", "swin_t", "convnext_tiny", "mobilenet_v2"}:
        yield replace(plain, memory_format="channels-last")
        yield replace(plain, precision="fp32", optimizer="Adam")


def _detector(name: str) -> Case:
    side = 300 if "ssd300" in name else 320 if "320" in name else 800
    return Case(
        workload=f"torchvision:{name}", image_size=side, micro_batch_size=2, group="detectors"
    )


def run(
    chosen: Sequence[Case], cards: Sequence[str], known: Collection[tuple[str, str]] = ()
) -> Iterator[Comparison]:
    """Yield each case's comparison on each card; what fails is told and left out.

    Args:
        chosen: the cases.
        cards: their names in the catalogue.
        known: names of cases and cards that are left out.
    """
    with ExitStack() as stack:
        children = [
            stack.enter_context(PhantomChild(catalogue.card(name), imports=IMPORTS))
            for name in cards
        ]
        for case in chosen:
            wanted = [child for child in children if (case.name, child.card.name) not in known]
            if not wanted:
                continue
            tape: Tape | None = None
            told: list[Told] = []
            for child in wanted:
                try:
                    if tape is None or not tape.is_for(child.card.compute_capability):
                        question = case.question(child.card)
                        with noted_sizes() as told:
                            tape = question.record(case.micro_batch_size, question.step_spec)
                except MemplanError as error:
                    click.echo(f"{case.name}: not predicted: {error}", err=True)
                    break
                start = time.perf_counter()
                try:
                    found = compare(case, predicted_life(case, child.card, tape), child, told)
                except MemplanError as error:
                    click.echo(f"{case.name} on {child.card.name}: {error}", err=True)
                    continue
                took = time.perf_counter() - start
                verdict = "equal" if found.is_equal else "differs"
                click.echo(f"{case.name} on {child.card.name}: {verdict}, {took:.1f} s", err=True)
                yield found


def _kept() -> dict[tuple[str, str], Comparison]:
    if not KEPT.exists():
        return {}
    rows = [Comparison.from_json(row) for row in json.loads(KEPT.read_text())]
    return {(row.case, row.card): row for row in rows}


def _keep(rows: Iterable[Comparison]) -> None:
    lines = ",\n".join(json.dumps(row.to_json()) for row in rows)
    KEPT.write_text(f"[\n{lines}\n]\n")


def _row(one: Comparison) -> tuple[str, ...]:
    def shares(name: str) -> str:
        mine, its = one.predicted[name], one.phantom[name]
        return f"{its:,}" if mine == its else f"{its:,} ({mine - its:+,})"

    alike = 2 * one.num_alike / max(1, one.num_predicted + one.num_phantom)
    return (
        one.case,
        f"{one.card} {one.compute_capability}",
        shares("allocated_peak_bytes"),
        shares("reserved_peak_bytes"),
        "yes" if one.is_equal else "no",
        f"{one.num_phantom:,}",
        f"{alike:.2%}",
        f"{one.convolutions.num_alike}/{one.convolutions.num_events}",
        f"{one.one_pixel.num_alike}/{one.one_pixel.num_events}",
    )


def _remarks(rows: Sequence[Comparison]) -> list[str]:
    equal = sum(row.is_equal for row in rows)
    where: Counter[str] = Counter()
    for row in rows:
        where.update(row.parted.keys())
    told = ", ".join(f"{name} {count}" for name, count in where.most_common(20))
    return [
        f"The right-hand side is {_PHANTOM}: no card, and no measurement.",
        f"Allocated and reserved bytes are equal in {equal} of {len(rows)} cases "
        f"({equal / max(1, len(rows)):.1%}). In brackets: prediction less phantom.",
        "Alike are events (blocks taken and given back, in order) with a twin on the other side.",
        "Convolution workspaces (events alike / all) prove little: both sides ask the same cuDNN "
        "planner about the same described card. Those of windows of one pixel are counted apart: "
        "there cuDNN plans otherwise without a driver, and maybe otherwise again on a real card.",
        f"Operators at whose place the lists part, with the number of cases: {told or 'none'}.",
    ]


def _publish(rows: Sequence[Comparison]) -> None:
    publish(
        "phantom_truth",
        f"Predictions beside {_PHANTOM}",
        (
            "Case", "Card", "Allocated (B)", "Reserved (B)", "Equal", "Events", "Alike",
            "Workspaces", "of one pixel",
        ),
        [_row(row) for row in rows],
        _remarks(rows),
    )  # fmt: skip


@click.command()
@click.option("--only", metavar="PATTERN", help="Cases by name or group, such as yolo.")
@click.option("--card", "cards", multiple=True, metavar="NAME", help="Instead of one of each.")
@click.option("--missing", is_flag=True, help="Leave out rows that are kept already.")
@click.option("--details", is_flag=True, help="Tell each difference of what ran.")
def main(only: str | None, cards: tuple[str, ...], missing: bool, details: bool) -> None:
    """Compare the chosen cases and publish every row that is kept."""
    kept = _kept()
    chosen = matching(cases(), only)
    for found in run(chosen, cards or CARDS, tuple(kept) if missing else ()):
        kept[found.case, found.card] = found
        _keep(kept.values())
        if details:
            for one, count in found.differences:
                click.echo(
                    f"  {count} x {one.section} {one.operator}: predicted {one.predicted}, "
                    f"phantom {one.measured}"
                )
    order = {case.name: index for index, case in enumerate(cases())}
    _publish(sorted(kept.values(), key=lambda row: (order.get(row.case, len(order)), row.card)))


if __name__ == "__main__":
    main()
