"""Images a second and peak memory of a training step, each lever on beside the plain step.

Measured on this machine's GPU, else on its CPU; beside that the memory predicted for yolov9-s at
640 px and batch 64 on an A100 80 GB. Variants take turns, so that what else the machine does falls
on all of them, and each is held against the plain step of the same round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.claims import Step
from benchmarks.common import publish
from memplan.api import Question
from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep
from memplan.trace.fake_cuda import warm_up
from memplan.trace.measure import with_random_images
from memplan.workload import Batch, Workload

CARD, MODEL, IMAGE_SIZE, BATCH = "a100-80gb", "yolov9-s", 640, 64
AIM_RESERVED_GIB, AIM_RATIO = 16, 1.3
PLAIN, OFFICIAL, TOGETHER = "plain", "official code", "channels-last, fused, lean"
LEVERS = ("channels-last", "fused optimizer", "lean", "recompute all", "compile")
EVERY = (PLAIN, *LEVERS, TOGETHER)
GIB = 2**30


@dataclass(frozen=True)
class Variant:
    """A way to run the step."""

    name: str
    workload: Workload
    settings: StepSpec


@dataclass(frozen=True)
class Measured:
    """One variant in one round."""

    images_per_second: float
    peak_bytes: int
    average_seconds: float


def levers(precision: str, recompute: tuple[str, ...], *, compiles: bool) -> dict[str, Any]:
    """Return the settings of each lever by its name, the plain step first."""
    plain = StepSpec(precision=precision)
    fused = replace(plain, fused=True)
    found = {
        PLAIN: plain,
        "channels-last": replace(plain, memory_format="channels-last"),
        "fused optimizer": fused,
        "lean": replace(plain, lean=True),
        "recompute all": replace(plain, recompute=recompute),
        TOGETHER: replace(fused, memory_format="channels-last", lean=True),
    }
    if compiles:
        found["compile"] = replace(plain, compiled=True)
    return found


def kept_bytes(step: TrainingStep, batch: Batch) -> int:
    """Return what autograd keeps of a forward for backward, parameters aside, bytes."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in step.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.workload.compute_loss(step.model, batch)
    return sum(sizes.values())


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(variant: Variant, device: torch.device, batch_size: int, num_steps: int) -> Measured:
    """Return what one variant does: two steps to warm up, then `num_steps` that count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = TrainingStep(variant.workload, variant.settings, device)
    images = with_random_images(variant.workload.make_batch(batch_size))
    averages = []

    def run() -> None:
        step.accumulate(step.training_batch(images))
        step.apply_gradients()
        step.release_gradients()
        averages.append(_timed(device, step.move_average))

    for _ in range(2):
        run()
    averages.clear()
    seconds = [_timed(device, run) for _ in range(num_steps)]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
    else:
        peak = kept_bytes(step, step.training_batch(images))
    return Measured(batch_size / statistics.median(seconds), peak, statistics.median(averages))


def measure_all(
    variants: list[Variant], device: torch.device, batch_size: int, rounds: int, num_steps: int
) -> dict[str, list[Measured]]:
    """Return each variant's rounds; they take turns."""
    found: dict[str, list[Measured]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in variants:
            click.echo(f"Round {number + 1} of {rounds}: {variant.name}", err=True)
            found[variant.name].append(measure(variant, device, batch_size, num_steps))
    return found


def ratios(found: dict[str, list[Measured]], name: str, base: str = PLAIN) -> list[float]:
    """Return a variant's images per second over the base's, round by round."""
    pairs = zip(found[name], found[base], strict=True)
    return [one.images_per_second / other.images_per_second for one, other in pairs]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def predict(
    image_size: int,
    batch_size: int,
    official: Path | None = None,
    only: Container[str] = EVERY,
) -> dict[str, tuple[int, float]]:
    """Return reserved bytes and images per second predicted for each lever on the card."""
    arguments: dict[str, Any] = {"image_size": image_size}
    ours = Step("ours", Question(workload=MODEL, arguments=arguments, gpus=(CARD,)))
    found = {}
    for name, settings in levers("amp-fp16", ours.question.all_blocks, compiles=False).items():
        if name not in only:
            continue
        click.echo(f"Predicting {name}", err=True)
        peaks = ours.peaks(batch_size, settings)
        found[name] = (peaks.reserved_peak_bytes, ours.rate(batch_size, settings))
    if official is not None:
        click.echo("Predicting the official code", err=True)
        asked = Question(
            workload=f"official:{official}", arguments={**arguments, "cfg": MODEL}, gpus=(CARD,)
        )
        theirs, settings = Step("official", asked), StepSpec()
        peaks = theirs.peaks(batch_size, settings)
        found[OFFICIAL] = (peaks.reserved_peak_bytes, theirs.rate(batch_size, settings))
    return found


def rows_of(
    found: dict[str, list[Measured]], predicted: dict[str, tuple[int, float]]
) -> list[tuple[str, ...]]:
    """Return the table's cells, a row a variant."""
    rows = []
    for name, several in found.items():
        rate = statistics.median(one.images_per_second for one in several)
        peak = max(one.peak_bytes for one in several)
        reserved, seconds_rate = predicted.get(name, (None, None))
        rows.append(
            (
                name,
                f"{rate:.2f}",
                _spread(ratios(found, name)),
                f"{peak / 2**20:.0f}",
                "-" if reserved is None else f"{reserved / GIB:.1f}",
                "-" if seconds_rate is None else f"{seconds_rate:.0f}",
            )
        )
    return rows


def remarks_on(
    found: dict[str, list[Measured]], predicted: dict[str, tuple[int, float]], about: str, kind: str
) -> list[str]:
    """Return what a reader must know, aims with their outcome."""
    lean, plain = predicted["lean"][0] / GIB, predicted[PLAIN][0] / GIB
    best = min(lean, predicted[TOGETHER][0] / GIB)
    outcome = "met" if best <= AIM_RESERVED_GIB else "missed"
    average = statistics.median(one.average_seconds for one in found[PLAIN])
    remarks = [
        about,
        f"Aim, memory: {MODEL}, {IMAGE_SIZE} px, batch {BATCH}, AMP in at most {AIM_RESERVED_GIB} "
        f"GiB reserved with lean blocks: {best:.1f} GiB (predicted), {outcome}; the plain step "
        f"takes {plain:.1f}.",
        f"The average of the weights moves in {1e3 * average:.1f} ms a step.",
    ]
    if OFFICIAL in found:
        best_of_ours = max((n for n in found if n != OFFICIAL), key=lambda n: max(ratios(found, n)))
        ratio = _spread(ratios(found, best_of_ours, OFFICIAL))
        where = "" if kind == "cuda" else "; that aim is for a GPU, and this is a CPU"
        remarks.append(
            f"Aim, speed: {AIM_RATIO} times the official step. Ours at its fastest here "
            f"({best_of_ours}) is {ratio} times it{where}."
        )
    return remarks


@click.command()
@click.option("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
@click.option("--cfg", default="yolov9-t", help="What is measured.")
@click.option("--img", default=160, help="Side of its images.")
@click.option("--batch", default=4, help="Images a step.")
@click.option("--rounds", default=5)
@click.option("--steps", default=4, help="Steps that count in a round.")
@click.option("--compile/--no-compile", "compiles", default=False)
@click.option("--official", type=click.Path(path_type=Path, exists=True), metavar="PATH")
def main(
    device: str,
    cfg: str,
    img: int,
    batch: int,
    rounds: int,
    steps: int,
    *,
    compiles: bool,
    official: Path | None,
) -> None:
    """Measure, predict, print the table and keep it."""
    warm_up()
    where = torch.device(device)
    precision = "amp-fp16" if where.type == "cuda" else "fp32"
    ours = make_workload(cfg, {"image_size": img})
    blocks = tuple(ours.recompute_blocks(ours.build_model()))
    variants = [
        Variant(name, ours, settings)
        for name, settings in levers(precision, blocks, compiles=compiles).items()
    ]
    if official is not None:
        theirs = make_workload(f"official:{official}", {"image_size": img, "cfg": cfg})
        variants.append(Variant(OFFICIAL, theirs, StepSpec(precision=precision)))
    found = measure_all(variants, where, batch, rounds, steps)
    predicted = predict(IMAGE_SIZE, BATCH, official)
    memory = "peak reserved" if where.type == "cuda" else "kept for backward"
    about = (
        f"Measured: {cfg}, {img} px, batch {batch}, {precision} on {device}, {rounds} rounds of "
        f"{steps} steps, variants in turn; the ratio is to the plain step of the same round, "
        "median (least to most)."
    )
    header = ("Step", "images/s", "Ratio", f"MiB {memory}", "GiB reserved *", "images/s *")
    remarks = remarks_on(found, predicted, about, where.type)
    remarks.append(
        f"* Predicted for {MODEL}, {IMAGE_SIZE} px, batch {BATCH}, AMP on {CARD}; images/s are a "
        "roofline's, uncalibrated."
    )
    options = f"--cfg {cfg} --img {img} --batch {batch} --rounds {rounds} --steps {steps}"
    options += " --official PATH" if official is not None else ""
    publish(
        "train_speed",
        "The training step, each lever on beside the plain step",
        header,
        rows_of(found, predicted),
        remarks,
        f"train_speed --device {device} {options}",
    )


if __name__ == "__main__":
    main()
