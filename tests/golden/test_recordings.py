"""Recordings of real cards replay through the simulated allocator with no byte of difference.

Those of `benchmarks/recordings`, whatever cards they are of. So that the door is tested before
any card has been at hand, runs of the released allocator go through the same file and function.
"""

import json
from pathlib import Path

import pytest
from golden_snapshots import CASES, golden_content

from memplan.trace.history import SUFFIX, Recording, check_replay, load_recording
from memplan.trace.snapshot import snapshot_of

ROOT = Path(__file__).parents[2]
COMMITTED = sorted((ROOT / "benchmarks" / "recordings").glob(f"*{SUFFIX}"))


def synthetic(case, folder):
    """Write a golden run as a recording, with the peaks that the released library printed."""
    run = json.loads((ROOT / f"tests/golden/allocator/{case}_2.11.0.json").read_text())
    line = [one for one in run["output"] if one.startswith("S ")][-1]
    words = line.split()
    peaks = {
        f"{name}_peak_bytes": int(words[words.index(f"{name}_bytes") + 1].split("/")[1])
        for name in ("allocated", "reserved")
    }
    path = folder / f"{case}{SUFFIX}"
    facts = {"measured": peaks}
    Recording(facts=facts, snapshot=snapshot_of(golden_content(case), 0)).save(path)
    return path


@pytest.mark.parametrize("source", [*CASES, *COMMITTED], ids=lambda source: Path(source).name)
def test_a_recording_replays_exactly(source, tmp_path):
    """Every address, size, segment and peak of the replay is the recorded one."""
    path = synthetic(source, tmp_path) if isinstance(source, str) else source
    recording = load_recording(path)
    if recording.snapshot is None:
        assert "measured" in recording.facts
        return

    check = check_replay(recording)

    assert (0, "", True, 0) == (
        check.num_differing_steps,
        check.first_difference,
        check.is_layout_equal,
        check.difference_bytes,
    )
    assert check.peaks
