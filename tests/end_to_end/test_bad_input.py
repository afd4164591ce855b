"""A seeded slice of the benchmark of bad input: no traceback, no hang, within memory."""

import pytest

from benchmarks.bad_input import MEMORY_LIMIT, make_cases, run_all

pytestmark = pytest.mark.slow


def test_bad_files_and_command_lines_are_refused_or_answered(tmp_path):
    """Of every kind of file and every command, nothing reaches a user as a traceback."""
    cases = make_cases(tmp_path, num_files=60, num_commands=60, seed=11)

    outcomes = list(run_all(cases, str(tmp_path)))

    wrong = [
        (one.case.kind, one.case.change, one.case.special, one.case.arguments[-3:], one.detail)
        for one in outcomes
        if one.result not in {"answered", "refused"} or one.peak_bytes > MEMORY_LIMIT
    ]
    assert [] == wrong
    assert len(cases) == len(outcomes)
