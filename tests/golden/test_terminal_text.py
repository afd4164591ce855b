"""What commands print, word for word, as golden files: a change of wording or layout is deliberate.

Regenerate with `python tests/golden/test_terminal_text.py` and review the difference.
"""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import report_samples
from test_report_script_pages import answer as script_answer

from memplan.present.diff import diff_sections, holdings_of
from memplan.present.plan import plan_sections
from memplan.present.probe import probe_sections
from memplan.present.replay import replay_sections
from memplan.present.run import run_sections
from memplan.present.run_record import read_run
from memplan.present.script import script_sections

FOLDER = Path(__file__).parent / "terminal"
GIB = 1 << 30
COLUMNS = 80
SIMULATED = {
    "allocated_peak_bytes": 5 * GIB,
    "reserved_peak_bytes": 6 * GIB,
    "num_alloc_retries": 2,
    "num_ooms": 0,
    "inactive_split_peak_bytes": GIB,
}
TAPE = {
    "file": "step.tape",
    "events": 946,
    "recorded": {},
    "simulated": {**SIMULATED, "device_used_peak_bytes": 7 * GIB},
    "capacity_bytes": 8 * GIB,
    "out_of_memory": "",
    "note": "",
    "origin": "simulated",
}
POOL = {
    "pool": "large",
    "stream": 0,
    "num_segments": 12,
    "num_blocks": 240,
    "reserved_bytes": 6 * GIB,
    "allocated_bytes": 4 * GIB,
    "inactive_bytes": 2 * GIB,
    "largest_inactive_bytes": GIB,
}
SNAPSHOT = {
    **TAPE,
    "file": "snapshot.pickle",
    "recorded": {"allocated_peak_bytes": 5 * GIB, "reserved_peak_bytes": 6 * GIB},
    "simulated": SIMULATED,
    "capacity_bytes": None,
    "num_differing_steps": 0,
    "is_layout_equal": True,
    "first_difference": "",
    "pools": [POOL, POOL | {"pool": "small", "num_blocks": 9}],
    "held_by": {"train.py:31 main": 3 * GIB, "net.py:12 forward": GIB},
    "recorded_origin": "measured",
}
EMPTY = {
    **SNAPSHOT,
    "simulated": {},
    "recorded": {"allocated_bytes": 4 * GIB, "reserved_bytes": 6 * GIB},
    "origin": "measured",
    "note": "The snapshot holds no history, so nothing is replayed.",
}


def _run():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exp"
        report_samples.write_run_folder(path)
        return run_sections(read_run(path), report_samples.sample_plan())


def _diff():
    one, other = report_samples.sample_probe(), report_samples.sample_probe(report_samples.A100)
    return diff_sections(holdings_of(one, "before.json"), holdings_of(other, "after.json"))


TEXTS = {
    "probe": lambda: probe_sections(report_samples.sample_probe()),
    "plan": lambda: plan_sections(report_samples.sample_plan()),
    "script": lambda: script_sections(script_answer()),
    "run": _run,
    "diff": _diff,
    "replay_tape": lambda: replay_sections(TAPE),
    "replay_snapshot": lambda: replay_sections(SNAPSHOT),
    "replay_empty_snapshot": lambda: replay_sections(EMPTY),
}


def text_of(name):
    """Return what is printed."""
    return "\n\n".join(section.text for section in TEXTS[name]()) + "\n"


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_that_of_the_golden_file(name):
    """Every word and column is as on record."""
    assert (FOLDER / f"{name}.txt").read_text() == text_of(name)


@pytest.mark.parametrize("name", TEXTS)
def test_tables_and_bars_fit_a_terminal(name):
    """No table or bar is wider than 80 columns; sentences are folded by the terminal's width."""
    wide = [
        line
        for section in TEXTS[name]()
        if section.table is not None
        for line in section.text.splitlines()
        if len(line) > COLUMNS
        and line not in (*section.sentences, *section.after)
        and "SHA-256" not in line  # one word, which is to be copied whole
    ]

    assert [] == wide


@pytest.mark.parametrize("name", TEXTS)
def test_text_has_no_colour(name):
    """Nothing printed has an escape: `NO_COLOR` changes nothing, and letters carry the bar."""
    assert "\x1b" not in text_of(name)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in TEXTS:
        (FOLDER / f"{each}.txt").write_text(text_of(each))
