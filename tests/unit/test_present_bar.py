"""The terminal's bar of categories: exact text, width, and every byte in a column."""

import pytest
import report_samples

from memplan.present.bar import LETTERS, bar_key, category_bar
from memplan.present.probe import probe_sections


def test_a_bar_is_its_shares():
    """Half activations, a quarter each of parameters and context, in the palette's order."""
    bar = category_bar({"context": 25, "activation": 50, "parameter": 25}, width=8)

    assert "[PPAAAAxx]" == bar
    assert "P parameter, A activation, x context" == bar_key(bar)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 10**12, 3), (0, 0, 7)])
def test_a_bar_is_as_wide_as_asked(sizes):
    """Rounding neither adds nor loses a column."""
    names = ("parameter", "activation", "cached")

    assert 80 == len(category_bar(dict(zip(names, sizes, strict=True))))


def test_nothing_has_no_bar_and_a_stranger_is_unattributed():
    """Names of a later version are counted, not dropped."""
    assert "" == category_bar({"activation": 0})
    assert "[UUUU]" == category_bar({"novelty": 5}, width=4)


def test_letters_differ():
    """No two categories share one."""
    assert len(LETTERS) == len(set(LETTERS.values()))


def test_the_probes_section_at_80_columns():
    """Caption, bar, key and table, line by line, none wider than a terminal of 80."""
    sections = probe_sections(report_samples.sample_probe())
    lines = next(one for one in sections if one.title == "Where memory goes").text.splitlines()

    assert [
        "At the peak of batch 16 (predicted)",
        "[GAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAATTTTTTTxxx]",
    ] == lines[:2]
    assert all(len(line) <= 80 for line in lines)
