"""What `memplan check` found, as text, as annotations of GitHub and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.present.section import aligned
from memplan.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found."""

    message: str
    """A sentence or two, in one line."""
    is_failure: bool = True
    column: str = ""
    """What the figures of the modules are."""
    modules: tuple[tuple[str, str], ...] = ()
    """Modules that grew, the most first, each with its figure."""

    def text(self) -> str:
        """Return the message, and a table of modules below."""
        if not self.modules:
            return self.message
        return f"{self.message}\n{aligned(('Module that grew', self.column), self.modules)}"

    def annotation(self, file: str) -> str:
        """Return a line that GitHub shows beside the job and in the pull request.

        Source: docs.github.com, "Workflow commands for GitHub Actions": setting an error message,
        and the escapes of github.com/actions/toolkit, packages/core/src/command.ts.
        """
        grown = ", ".join(f"{name} {figure}" for name, figure in self.modules)
        message = f"{self.message} Modules that grew: {grown}." if grown else self.message
        level = "error" if self.is_failure else "warning"
        return f"::{level} file={_property(file)},title=memplan check::{_data(message)}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One probe or run and what was found of it."""

    subject: str
    used_bytes: int | None
    """Device-used; None where it did not run."""
    reserved_bytes: int | None
    before_bytes: int | None = None
    """Reserved in the baseline; None without one."""
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def has_failed(self) -> bool:
        """Whether a finding fails the check."""
        return any(one.is_failure for one in self.findings)


def markdown(file: str, budget_bytes: int | None, checked: list[Checked]) -> str:
    """Return a summary for a page: a table, and below it what was found."""
    failed = any(one.has_failed for one in checked)
    lines = [f"### Memory of `{file}`: {'failed' if failed else 'ok'}", ""]
    lines += ["| | device-used | budget | reserved | baseline | change | |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    lines += [_row(one, budget_bytes) for one in checked]
    for finding in (found for one in checked for found in one.findings):
        lines += ["", _cell(finding.message)]
        if finding.modules:
            lines += ["", f"| module that grew | {finding.column.lower()} |", "|---|---:|"]
            lines += [f"| `{_cell(name)}` | {figure} |" for name, figure in finding.modules]
    return "\n".join([*lines, ""])


def _row(one: Checked, budget_bytes: int | None) -> str:
    now, before = one.reserved_bytes, one.before_bytes
    change = "" if now is None or not before else f"{now / before - 1:+.1%}"
    sizes = [_size(one.used_bytes), _size(budget_bytes), _size(now), _size(before), change]
    result = "failed" if one.has_failed else "ok"
    return f"| {' | '.join([_cell(one.subject), *sizes, result])} |"


def _size(number: int | None) -> str:
    return "" if number is None else format_bytes(number)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
