"""Answers how large images may be: with the plan's setting, and with ever more levers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from memplan.advise.planned import Planned, replayed_with_rate
from memplan.evaluation.bisection import last_holding
from memplan.fit.attempts import Attempt, Failed
from memplan.parallel import map_processes
from memplan.plan_answers import ImageOption
from memplan.planner.space import fits_budget
from memplan.processes import num_cores
from memplan.spec import FLAG, LEVERS, Split, StepSpec

# Far beyond what detectors are trained with; tensors of more elements than 2^31 are slow anyway.
_LARGEST_SIDE = 8192


@dataclass(frozen=True)
class _Way:
    what: str
    spec: StepSpec
    split: Split


def largest_images(planned: Planned) -> tuple[ImageOption, ...]:
    """Return the largest images that fit, first with the plan's setting, then with more levers.

    Memory beside what lasts grows with the area, which gives a first guess; each further side is
    recorded and replayed, and the last one is the largest multiple of the stride that fits: the
    next one was recorded too and does not, or cannot be.
    """
    ways = list(_ways(planned))
    planned.say(f"Trying larger images in {len(ways)} ways")
    found = map_processes(partial(_largest, planned), ways, doing="trying larger images")
    options = [one for one in found if one is not None]
    kept: list[ImageOption] = []
    for one in options:
        if not kept or one.img > kept[-1].img:
            kept.append(one)
    return tuple(kept)


def _ways(planned: Planned) -> Iterator[_Way]:
    """Yield ways to run, each with more freedom than the one before it."""
    chosen, question = planned.chosen, planned.question
    yield _Way("as the plan runs", chosen.spec, chosen.split)
    space = planned.space()
    one = space.split(1, space.share)
    spec = replace(chosen.spec, recompute=())
    yield _Way("one image at a time", spec, one)
    for lever in LEVERS:
        if lever.kind != FLAG or not lever.costs_speed:
            continue
        saving, value = lever.tried[-1], getattr(spec, lever.name)
        if saving != value and lever.is_offered(question.made, saving):
            spec = replace(spec, **{lever.name: saving})
            yield _Way(f"also {lever.words(saving)}", spec, one)
    if "recompute" in planned.free and question.all_blocks:
        spec = replace(spec, recompute=question.all_blocks)
        yield _Way("also all blocks recomputed", spec, one)


def _largest(planned: Planned, way: _Way) -> ImageOption | None:
    """Return the largest image in one way; None where not even the plan's size fits."""
    stride = max(planned.question.made.stride, 1)
    stride = stride if stride > 1 else 32
    side = planned.question.made.image_size
    tried: dict[int, ImageOption | None] = {}
    used: dict[int, int] = {}

    def fits(size: int) -> bool:
        if size not in tried:
            tried[size], taken = _at(planned, way, size)
            used.update({size: taken} if taken is not None else {})
        return tried[size] is not None

    low, high = side, _LARGEST_SIDE // stride * stride + stride
    if not fits(side):
        return None
    other = min(2 * side, high - stride) // stride * stride
    low, high = (other, high) if fits(other) else (low, other)

    def by_area(*_: int) -> int | None:
        return _guess(used, planned.budget.num_bytes, stride) if len(used) > 1 else None

    return tried[last_holding(fits, low, high, guess=by_area, step=stride)]


def _guess(used: dict[int, int], limit_bytes: int, stride: int) -> int:
    """Return the side at which the line through two areas' bytes meets the limit."""
    nearest = sorted(used, key=lambda size: abs(used[size] - limit_bytes))[:2]
    (a, at_a), (b, at_b) = ((size**2, used[size]) for size in nearest)
    area = a + (limit_bytes - at_a) * (b - a) / ((at_b - at_a) or 1)
    return int(max(area, 1.0) ** 0.5) // stride * stride


def _at(planned: Planned, way: _Way, side: int) -> tuple[ImageOption | None, int | None]:
    """Return what images of a side take in one way; None and the bytes where they do not fit.

    No bytes where the step cannot be recorded.
    """
    question = planned.question
    sized = replace(question, arguments={**question.arguments, "image_size": side})
    batch = way.split.micro_batch_size
    made = Attempt(sized.recorder(way.spec), frozenset(), num_cores())(batch)
    if isinstance(made, Failed):
        return None, None
    tape = made
    simulator = question.simulator(way.spec.allocator)
    peaks, rate = replayed_with_rate(planned, simulator, tape, way.split)
    if not fits_budget(peaks, planned.budget):
        return None, peaks.device_used_peak_bytes
    rate *= question.devices
    option = ImageOption(
        way=way.what,
        img=side,
        spec=way.spec,
        split=way.split,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        budget_bytes=planned.budget.num_bytes,
        images_per_second=rate,
        time_factor=planned.chosen.predicted.images_per_second / rate,
    )
    return option, peaks.device_used_peak_bytes
