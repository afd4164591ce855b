"""What every benchmark does: name the machine and the versions, print a table, keep it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from memplan.advise import versions
from memplan.present.section import aligned as table

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Return the processor, its usable cores and the memory, in a few words."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {model}, {memory:.0f} GiB, {platform.system()}"


def require(*packages: str) -> None:
    """End where a package is missing whose rows a result would lack without a word."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"{missing[0]} is not installed, and the result would lack its rows. "
            "`pip install -c constraints.txt '.[benchmarks]'` installs it."
        )


def publish(
    name: str,
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    remarks: Sequence[str],
    command: str | None = None,
) -> None:
    """Print a table and write it to `benchmarks/results/NAME.md` with machine and versions.

    Args:
        name: of the result's file, without ending.
        title: what was measured, one line.
        header: column titles with units.
        rows: cells as text.
        remarks: what a reader must know, one line each.
        command: what follows `python -m benchmarks.`; None takes the name.
    """
    text = table(header, rows)
    about = ", ".join(f"{key} {value}" for key, value in versions().items())
    lines = [f"# {title}", "", "```", text, "```", "", *[f"- {remark}" for remark in remarks]]
    lines += [f"- Machine: {machine()}.", f"- Versions: {about}."]
    lines += [f"- Command: `python -m benchmarks.{command or name}`.", ""]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))
