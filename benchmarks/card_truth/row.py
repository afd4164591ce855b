"""One published measurement and what we say of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

# What the figure is: bytes that tensors asked for, that the allocator gave, that it holds from the
# driver, that the driver counts as used on the card; or the latter less what was used before.
Figure = Literal["requested", "allocated", "reserved", "device-used", "device-used, less its first"]
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement with a card, and a prediction beside it; bytes."""

    kind: str
    """The table it stands in."""
    case: str
    """What ran, a few words; unique within its table."""
    card: str
    figure: Figure
    measured_bytes: int
    measured_high_bytes: int | None = None
    """The other end where only a range is known; None where the figure is one number."""
    ran_out: bool = False
    """Whether the run ran out of memory, so that the figure is only how far it got."""
    predicted_bytes: int | None = None
    """None where it is not predicted, and then `remark` says why."""
    is_bound: bool = False
    """Whether the prediction is an upper bound by design, so that its range is what is judged."""
    low_bytes: int | None = None
    """Least that the prediction leaves open; None where it leaves nothing open."""
    high_bytes: int | None = None
    """Most that it leaves open."""
    open_because: str = ""
    """What the range of the prediction is about."""
    predicted_to_run_out: bool | None = None
    """The verdict, where a run that ran out is among the rows of the table."""
    torch: str = ""
    """As the source states it or its text tells; empty where it does not."""
    cudnn: str = ""
    source: str
    remark: str = ""

    @property
    def error(self) -> float | None:
        """The prediction's signed distance from the measurement; None where nothing compares.

        A part of the measurement, from the nearer end where that is a range.
        """
        if self.predicted_bytes is None or self.ran_out or not self.measured_bytes:
            return None
        high = self.measured_high_bytes or self.measured_bytes
        nearest = min(max(self.predicted_bytes, self.measured_bytes), high)
        return self.predicted_bytes / nearest - 1

    @property
    def range_error(self) -> float | None:
        """The signed distance of what the prediction leaves open; 0 where the figure is inside."""
        if self.error is None:
            return None
        low = self.predicted_bytes if self.low_bytes is None else self.low_bytes
        high = self.predicted_bytes if self.high_bytes is None else self.high_bytes
        assert low is not None
        assert high is not None
        top = self.measured_high_bytes or self.measured_bytes
        if high < self.measured_bytes:
            return high / self.measured_bytes - 1
        return max(0.0, low / top - 1)

    @property
    def is_miss(self) -> bool:
        """Whether the prediction is off by more than 5 %; of a bound, its range."""
        judged = self.range_error if self.is_bound else self.error
        return judged is not None and abs(judged) > TOLERANCE

    @property
    def is_wrong_verdict(self) -> bool:
        """Whether running out was foretold wrongly."""
        return self.predicted_to_run_out is not None and self.predicted_to_run_out != self.ran_out

    def cells(self) -> dict[str, Any]:
        """Return the row as written to csv, derived figures included."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = {name: "" if value is None else value for name, value in own.items()}
        errors = {"error": self.error, "range_error": self.range_error}
        return {**shown, **{k: "" if v is None else f"{v:.4f}" for k, v in errors.items()}}
