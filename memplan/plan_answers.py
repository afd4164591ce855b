"""Parts of a plan's answer that are only there on request: a command's fit, cards, edge and more.

They belong to `memplan.answers.PlanAnswer`; memory is integer bytes, time effects are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.spec import Split, StepSpec

_PREDICTED = "predicted"


@dataclass(frozen=True, kw_only=True)
class CommandChange:
    """A change of a command's options, replayed, with what it does to memory and time."""

    options: str
    """What to add, or to give in place of what was typed, such as `--batch 32 --fused`."""
    command: str
    """The whole command with it."""
    runs_official: bool
    """Whether the official script takes these options too."""
    spec: StepSpec
    split: Split
    device_used_peak_bytes: int
    memory_change_bytes: int
    """Against the command as typed; negative where it saves."""
    time_change_fraction: float
    """Of the time an epoch takes, against the command as typed; negative where it is faster."""
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class CommandFit:
    """Whether a user's own training command fits a card, and what would make it."""

    command: str
    """As typed."""
    spec: StepSpec
    split: Split
    validation_batch_size: int | None
    """Images validated at once; None where nothing is validated."""
    device_used_peak_bytes: int
    peak_period: str
    images_per_second: float
    """Of the card's arithmetic and memory; as if it fitted."""
    fits: bool
    """Within the budget, at full speed."""
    fits_card: bool
    """Within the card, if need be with no margin and an emptied cache."""
    over_bytes: int
    """How much more than the budget it takes; negative where it is below."""
    changes: tuple[CommandChange, ...]
    """Each makes it fit, least time first; where it fits, those that make it faster."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted, a sentence each."""
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class CardOption:
    """What one card of the catalogue would do with a run."""

    name: str
    capacity_bytes: int
    fits: bool
    spec: StepSpec
    """Recomputing was looked into only where nothing else fits."""
    split: Split
    """Of no images where nothing fits, as for all that follows."""
    device_used_peak_bytes: int
    budget_bytes: int
    images_per_second: float
    images_per_joule: float
    """Images a second for each watt of the board's power limit."""
    watts: int
    price: float | None = None
    """As given, in whatever unit."""
    images_per_second_per_price: float | None = None
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class CardChoice:
    """The catalogue's cards for a run, and which stand out."""

    cards: tuple[CardOption, ...]
    """All, those that fit first, fastest first."""
    smallest: str | None
    """Name of the card with least memory that fits; of equals the slowest."""
    fastest: str | None
    best_value: str | None
    value: str
    """What value means here, a few words."""
    notes: tuple[str, ...] = ()
    """What does not hold for some of them, a sentence each."""
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class ImageOption:
    """The largest image that fits in one way to run."""

    way: str
    """What may change, a few words."""
    img: int
    """Side, pixels."""
    spec: StepSpec
    split: Split
    device_used_peak_bytes: int
    budget_bytes: int
    images_per_second: float
    time_factor: float
    """Time of an image over that in the plan."""
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class SecondCard:
    """What another card of the same kind buys, with the same images a step."""

    spec: StepSpec
    split: Split
    first_rank_peak_bytes: int
    """Device-used, of the rank that also validates and keeps the average."""
    other_rank_peak_bytes: int
    bucket_bytes: int
    """DDP's flat buckets on each rank, in both peaks."""
    images_per_second: float
    ratio: float
    """Over the images a second of one card."""
    epoch_seconds: float | None
    """None when the data set is not known."""
    epoch_seconds_alone: float | None
    origin: str = _PREDICTED


@dataclass(frozen=True, kw_only=True)
class Edge:
    """How near the chosen setting is to its budget and card, and what would push it over."""

    headroom_bytes: int
    """Below the budget."""
    card_headroom_bytes: int
    """Below what the card has."""
    expected_objects: int
    """In the fullest image that the plan reckons with; 0 where the notion does not apply."""
    objects_within_budget: int | None
    """Most in an image that stay within the budget; None where any number tried does."""
    objects_within_card: int | None
    objects_tried: int
    """Most that were tried; 0 where the objects make no difference."""
    validation_batch_size: int | None
    """Images validated at once; None where nothing is validated."""
    validation_within_budget: int | None
    """Most images validated at once within the budget; None where any number tried does."""
    validation_tried: int
    """Most that were tried; 0 where that was not looked into."""
    next_micro_batch_size: int
    """One image more."""
    next_peak_bytes: int
    """Device-used, with one image more."""
    next_is_recorded: bool = True
    """Whether that was recorded; False where it is only what smaller batches lead to expect."""
    multi_scale_side: int | None
    """Largest side under multi-scale; None where the workload has none or trains so already."""
    multi_scale_peak_bytes: int | None
    """Device-used at that side."""
    origin: str = _PREDICTED
