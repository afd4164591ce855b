"""An article's claims about training yolov9-s, each beside memplan's own figure.

The article says: batch 64 at 640 px under AMP peaks at 46 GB on an A100 80 GB; AMP saves 30 %;
checkpointing saves 40 % for 15 % time; batch 16 accumulated 4 times equals 64 at 1.3 to 1.5 times
the time; inputs take 2.36 MB an image; parameters with Adam take about 90 MB; two GPUs take 128.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import RESULTS, machine
from memplan import tape as tapes
from memplan.advise import Question, versions
from memplan.advise.inside_plan import block_savings
from memplan.device import catalogue
from memplan.device.life import Life, Program
from memplan.device.replay import Peaks
from memplan.evaluation.throughput import images_per_second
from memplan.report.claims_page import Claim, claims_figures, write_claims
from memplan.spec import StepSpec
from memplan.tape import Int64, Tape
from memplan.trace.fake_cuda import warm_up

MODEL, CARD, IMAGE_SIZE = "yolov9-s", "a100-80gb", 640
# The same network without the branch that only training uses.
SLIM_MODEL = "gelan-s"
BATCH, SMALL_BATCH = 64, 16
# The article's own figures; bytes are decimal, as it writes GB and MB.
PEAK_BYTES, AMP_SAVING, RECOMPUTE_SAVING, RECOMPUTE_TIME = 46e9, 0.30, 0.40, 0.15
ACCUMULATION_TIME, INPUT_BYTES, ADAM_BYTES = (1.3, 1.5), 2.36e6, 90e6
# A claim of a figure holds when memplan's is as near as this share, or these points.
_NEAR_SHARE, _NEAR_POINTS = 0.1, 0.05
# What a ratio of two times may be off by with no calibration, as the README says of the roofline.
_TIME_ERROR = 0.2
PDF = Path(__file__).parents[1] / "reports" / f"claims-{MODEL}.pdf"


@dataclass(frozen=True, eq=False)
class Step:
    """One code's step: ours, or that of a checkout of the official repository."""

    label: str
    question: Question

    @cache  # noqa: B019 - two of these live as long as the program
    def tape(self, batch: int, settings: StepSpec, devices: int = 1) -> Tape:
        """Return the tape at a micro-batch size."""
        return replace(self.question, devices=devices).record(batch, settings)

    def peaks(
        self, batch: int, settings: StepSpec, *, accumulates: bool = False, devices: int = 1
    ) -> Peaks:
        """Return the peaks of a whole life on the article's card."""
        tape = self.tape(batch, settings, devices)
        simulator = replace(self.question, devices=devices).simulators()[0]
        program = Program(tape, Life(accumulates=accumulates))
        device = simulator.device_bytes(tape.convolutions, tape.launches)
        sizes = program.sizes(tape.events.requested_bytes, device)
        return simulator.peaks(program, sizes, tape.convolutions)

    def rate(self, batch: int, settings: StepSpec, accumulation_steps: int = 1) -> float:
        """Return images per second by the roofline."""
        tape = self.tape(batch, settings)
        simulator = self.question.simulators()[0]
        device = simulator.device_bytes(tape.convolutions, tape.launches)
        return images_per_second(tape, simulator.card, device.convolutions, accumulation_steps)


@dataclass(frozen=True)
class Finding:
    """A figure of one step, in words, and whether it bears the claim out."""

    text: str
    holds: bool
    holds_otherwise: bool = False
    """Whether another reading of the claim, stated in the text, is borne out."""


AMP = StepSpec()


def _is_near(value: float, stated: float) -> bool:
    return abs(value / stated - 1) <= _NEAR_SHARE


def peak(step: Step) -> Finding:
    """Batch 64 under AMP peaks at 46 GB."""
    peaks = step.peaks(BATCH, AMP)
    reserved = peaks.reserved_peak_bytes
    text = (
        f"{reserved / 1e9:.1f} GB reserved, {peaks.allocated_peak_bytes / 1e9:.1f} GB allocated, "
        f"{peaks.device_used_peak_bytes / 1e9:.1f} GB device-used; without AMP "
    )
    full = step.peaks(BATCH, replace(AMP, precision="fp32"))
    text += f"{full.allocated_peak_bytes / 1e9:.1f} GB allocated (predicted)"
    return Finding(text, _is_near(reserved, PEAK_BYTES))


def amp(step: Step) -> Finding:
    """AMP saves 30 %."""
    full = step.peaks(BATCH, replace(AMP, precision="fp32")).allocated_peak_bytes
    half = step.peaks(BATCH, AMP).allocated_peak_bytes
    saving = 1 - half / full
    text = f"{saving:.0%} of allocated: {full / 1e9:.1f} to {half / 1e9:.1f} GB (predicted)"
    return Finding(text, abs(saving - AMP_SAVING) <= _NEAR_POINTS)


def recompute(step: Step) -> Finding:
    """Checkpointing saves 40 % for 15 % time."""
    every = replace(AMP, recompute=step.question.all_blocks)
    plain, less = (step.peaks(BATCH, one).allocated_peak_bytes for one in (AMP, every))
    saving = 1 - less / plain
    time = step.rate(BATCH, AMP) / step.rate(BATCH, every) - 1
    some = replace(AMP, recompute=_enough_blocks(step, every, plain))
    less = step.peaks(BATCH, some).allocated_peak_bytes
    saving_of_some = 1 - less / plain
    time_of_some = step.rate(BATCH, AMP) / step.rate(BATCH, some) - 1
    text = (
        f"all {len(every.recompute)} blocks: {saving:.0%} of allocated (predicted) for {time:.0%} "
        f"more time; {len(some.recompute)} of them: {saving_of_some:.0%} for {time_of_some:.0%} "
        "(roofline, uncalibrated)"
    )
    return Finding(text, _bears_out(saving, time), _bears_out(saving_of_some, time_of_some))


def _bears_out(saving: float, time: float) -> bool:
    """Return whether as much is saved as claimed, for no more time than claimed, within points."""
    is_near = abs(saving - RECOMPUTE_SAVING) <= _NEAR_POINTS
    return is_near and time <= RECOMPUTE_TIME + _NEAR_POINTS


def _enough_blocks(step: Step, every: StepSpec, peak_bytes: int) -> tuple[str, ...]:
    """Return the blocks that give most bytes for their time, enough for the claimed saving."""
    simulator = step.question.simulators()[0]
    savings = block_savings(lambda settings: step.tape(BATCH, settings), simulator, every)
    best = sorted(savings, key=lambda one: one.forward_seconds / max(one.activation_bytes, 1))
    # A recomputed block's input stays, and the peak falls by less than what it no longer keeps.
    wanted = RECOMPUTE_SAVING - _NEAR_POINTS
    chosen: set[str] = set()
    bought = 0
    for block in best:
        chosen.add(block.path)
        bought += block.activation_bytes
        if bought < wanted * peak_bytes:
            continue
        some = tuple(path for path in every.recompute if path in chosen)
        less = step.peaks(BATCH, replace(AMP, recompute=some)).allocated_peak_bytes
        if 1 - less / peak_bytes >= wanted:
            break
    return tuple(path for path in every.recompute if path in chosen)


def accumulation(step: Step) -> Finding:
    """16 x 4 equals 64 at 1.3 to 1.5 times the time."""
    steps = BATCH // SMALL_BATCH
    ratio = step.rate(BATCH, AMP) / step.rate(SMALL_BATCH, AMP, steps)
    small = step.peaks(SMALL_BATCH, AMP, accumulates=True).reserved_peak_bytes
    low, high = ACCUMULATION_TIME
    text = (
        f"{ratio:.2f} times the time (roofline, uncalibrated); {small / 1e9:.1f} GB reserved "
        "(predicted)"
    )
    within_error = low * (1 - _TIME_ERROR) <= ratio <= high * (1 + _TIME_ERROR)
    return Finding(text, low <= ratio <= high, within_error)


def inputs(step: Step) -> Finding:
    """Inputs take 2.36 MB an image."""
    counts = [_inputs_by_block(step.tape(batch, AMP)) for batch in (SMALL_BATCH, BATCH)]
    per_image = np.unique((counts[1] - counts[0]) // (BATCH - SMALL_BATCH))
    images = [int(one) for one in per_image if one >= 3 * IMAGE_SIZE**2]
    listed = " and ".join(f"{one / 1e6:.2f} MB" for one in images)
    text = f"{listed} an image, {sum(images) / 1e6:.2f} MB together"
    cast = _half_copy_bytes(step.tape(BATCH, AMP)) // BATCH
    text += f"; autocast keeps another {cast / 1e6:.2f} MB for backward (recorded)"
    near = any(_is_near(one, INPUT_BYTES) for one in [*images, sum(images)])
    return Finding(text, near, _is_near(cast, INPUT_BYTES))


def _inputs_by_block(tape: Tape) -> Int64:
    """Return the bytes of every input tensor of a micro-batch, in order."""
    events = tape.events
    mine = (
        (events.section == tapes.SECTIONS.index("micro_batch"))
        & (events.kind == tapes.ALLOCATE)
        & (tape.operators.phase[events.operator] == tapes.PHASES.index("transfer"))
    )
    sizes: Int64 = events.requested_bytes[mine]
    return sizes


def _half_copy_bytes(tape: Tape) -> int:
    """Return the bytes of the images as the first convolution takes them, 0 without a cast."""
    events = tape.events
    size = 2 * 3 * IMAGE_SIZE**2 * tape.description.micro_batch_size
    mine = (
        (events.section == tapes.SECTIONS.index("micro_batch"))
        & (events.kind == tapes.ALLOCATE)
        & (tape.operators.phase[events.operator] == tapes.PHASES.index("forward"))
    )
    return size if size in events.requested_bytes[mine] else 0


def adam(step: Step) -> Finding:
    """Parameters with Adam take about 90 MB."""
    settings = replace(AMP, optimizer="Adam")
    tape = step.tape(SMALL_BATCH, settings)
    events = tape.events
    born = events.kind == tapes.ALLOCATE
    category = tape.block_category[events.block]
    state = events.requested_bytes[
        born
        & (category == tapes.CATEGORY_INDEX["optimizer_state"])
        & (events.section == tapes.SECTIONS.index("first_update"))
    ].sum()
    parameters = 4 * tape.description.parameters
    total = int(state) + parameters
    slim = Question(workload=SLIM_MODEL, arguments={"image_size": IMAGE_SIZE}, gpus=(CARD,))
    kept = slim.record(SMALL_BATCH, settings).description.parameters
    text = (
        f"{total / 1e6:.0f} MB: {tape.description.parameters / 1e6:.2f} M parameters of "
        f"{parameters / 1e6:.0f} MB and {state / 1e6:.0f} MB of state; {parameters / 1e6:.0f} MB "
        "of gradients and as much for the average come on top; without the auxiliary branch, "
        f"{kept / 1e6:.2f} M parameters and {12 * kept / 1e6:.0f} MB (recorded)"
    )
    return Finding(text, _is_near(total, ADAM_BYTES), _is_near(12 * kept, ADAM_BYTES))


def two_cards(step: Step) -> Finding:
    """Two cards under DDP take 128."""
    peaks = step.peaks(BATCH, AMP, devices=2)
    alone = step.peaks(BATCH, AMP)
    tensors = peaks.allocated_peak_bytes - alone.allocated_peak_bytes
    text = (
        f"2 x {BATCH}: rank 0 takes {peaks.device_used_peak_bytes / 1e9:.1f} GB device-used of "
        f"{peaks.capacity_bytes / 1e9:.1f}, {alone.device_used_peak_bytes / 1e9:.1f} alone; its "
        f"tensors take {tensors / 1e9:.2f} GB more (predicted)"
    )
    return Finding(text, peaks.fits)


CHECKS = (
    (
        f"{MODEL} at batch {BATCH}, {IMAGE_SIZE} px, AMP peaks at {PEAK_BYTES / 1e9:.0f} GB on an "
        "A100 80 GB",
        peak,
        "Reserved is what counts for fitting. What tensors hold without AMP stands beside it, as a "
        "figure of that size may be.",
    ),
    (
        f"AMP saves {AMP_SAVING:.0%} of memory",
        amp,
        "Most of the peak is activations, and autocast keeps nearly all of them in half.",
    ),
    (
        f"Checkpointing saves {RECOMPUTE_SAVING:.0%} for {RECOMPUTE_TIME:.0%} more time",
        recompute,
        "It depends on which blocks recompute: all that may, or those that give most bytes for "
        "their time, as many as the saving takes.",
    ),
    (
        f"Batch {SMALL_BATCH} x {BATCH // SMALL_BATCH} equals {BATCH} at {ACCUMULATION_TIME[0]} to "
        f"{ACCUMULATION_TIME[1]} times the time",
        accumulation,
        "Gradients are equal but for batch norm, which sees the micro-batch. The time is lost only "
        "where a small batch under-fills the card or the host cannot keep up; how much, the "
        "roofline tells to tens of percent, and the claim is within that.",
    ),
    (
        f"Inputs take {INPUT_BYTES / 1e6:.2f} MB an image",
        inputs,
        f"3 x {IMAGE_SIZE} x {IMAGE_SIZE} values are {3 * IMAGE_SIZE**2 / 1e6:.2f} MB as uint8, "
        f"{6 * IMAGE_SIZE**2 / 1e6:.2f} MB in half, {12 * IMAGE_SIZE**2 / 1e6:.2f} MB as float32. "
        "The step sends uint8, scales in float32, and autocast makes the half copy of the claim.",
    ),
    (
        f"Parameters with Adam take about {ADAM_BYTES / 1e6:.0f} MB",
        adam,
        "Weights and two moments, in float32. It depends on which parameters are meant: training "
        "has those of the auxiliary branch as well. The recipe's default is SGD, with one moment.",
    ),
    (
        f"Two GPUs under DDP take {2 * BATCH}",
        two_cards,
        f"Each card takes {BATCH} as it would alone, NCCL's memory, and buckets as large as all "
        "gradients, for which the allocator may have room in what it has reserved.",
    ),
)


def check(steps: list[Step]) -> list[Claim]:
    """Return every claim with what each step says of it."""
    claims = []
    for text, finding_of, why in CHECKS:
        findings = [finding_of(step) for step in steps]
        holds = {finding.holds for finding in findings}
        verdict = "holds" if holds == {True} else "does not hold"
        if len(holds) > 1 or (verdict != "holds" and all(f.holds_otherwise for f in findings)):
            verdict = "depends"
        found = tuple(
            f"{step.label}: {finding.text}" for step, finding in zip(steps, findings, strict=True)
        )
        claims.append(Claim(text=text, found=found, verdict=verdict, why=why))
        click.echo(f"{text}: {verdict}. {'; '.join(found)}", err=True)
    return claims


def publish_claims(claims: list[Claim], remarks: list[str], command: str) -> None:
    """Print the claims as a table and write it to `benchmarks/results/claims.md`.

    Args:
        claims: what was found.
        remarks: what a reader must know, a sentence or two each.
        command: that makes the table.
    """
    lines = [f"# An article's claims about training {MODEL}, and memplan's figures", ""]
    lines += ["| Claim | memplan's figure | Verdict | Why |", "|---|---|---|---|"]
    for claim in claims:
        lines.append(
            f"| {claim.text} | {'<br>'.join(claim.found)} | {claim.verdict} | {claim.why} |"
        )
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines += ["", *(f"- {remark}" for remark in remarks), f"- Machine: {machine()}; no GPU."]
    lines += [f"- Versions: {about}.", f"- Command: `{command}`.", ""]
    click.echo("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "claims.md").write_text("\n".join(lines))


@click.command()
@click.option(
    "--official",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Record also the code of this checkout of the official repository.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=PDF,
    metavar="PATH.pdf",
    help=f"Where the pages go.  [reports/{PDF.name}]",
)
def main(official: Path | None, output: Path) -> None:
    """Check every claim, print the table, and write it and its pages."""
    warm_up()
    arguments: dict[str, Any] = {"image_size": IMAGE_SIZE}
    steps = [Step("Our step", Question(workload=MODEL, arguments=arguments, gpus=(CARD,)))]
    if official is not None:
        more = {**arguments, "cfg": MODEL}
        asked = Question(workload=f"official:{official}", arguments=more, gpus=(CARD,))
        steps.append(Step("Official code", asked))
    claims = check(steps)
    command = shlex.join(["python", "-m", "benchmarks.claims"])
    command += " --official PATH" if official is not None else ""
    objects = steps[0].question.made.objects_per_image
    remarks = [
        "Predicted: recorded without a GPU and replayed on the card's allocator, with "
        f"{objects} objects an image, contiguous, SGD but where Adam is said. Times are a "
        "roofline's, uncalibrated.",
        f"A figure bears a claim out within {_NEAR_SHARE:.0%}, a share within "
        f"{100 * _NEAR_POINTS:.0f} points. It depends where another reading, stated beside the "
        "figure, is borne out, or where the steps disagree.",
    ]
    publish_claims(claims, remarks, command)
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    card = catalogue.card(CARD)
    facts = [
        ("Command", command),
        ("Card", f"{card.title}, {card.capacity_bytes:,} bytes. Source: {card.source}"),
        ("Figures", remarks[0]),
        ("Verdicts", remarks[1]),
        ("Versions", about),
        ("Machine", f"{machine()}; no GPU was used."),
    ]
    title = f"An article's claims about training {MODEL}"
    subtitle = f"Each beside memplan's figure for {card.title} at {IMAGE_SIZE} px."
    write_claims(output, claims_figures(title, subtitle, claims, facts))
    click.echo(f"Wrote {output}", err=True)


if __name__ == "__main__":
    main()
