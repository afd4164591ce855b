"""`memplan gpus` lists the catalogue, under the names that --gpu takes."""

import pytest
from cli_inside import runner

from memplan.device import catalogue, nvml


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


def test_json_lists_every_card(memplan):
    """JSON has the catalogue, the cards here and what was measured, memory in whole bytes."""
    answer = memplan("gpus", "--json").json

    assert {"catalogue", "present", "calibrations"} == set(answer)
    assert [card.name for card in catalogue.cards()] == [
        card["name"] for card in answer["catalogue"]
    ]
    assert len(nvml.present()) == len(answer["present"])
    for card in answer["catalogue"]:
        assert type(card["capacity_bytes"]) is int
        assert 0 < card["context_bytes"] < card["capacity_bytes"]


def test_promised_names_are_listed(memplan):
    """The names that the documentation uses are in the table, and --gpu takes each first column."""
    finished = memplan("gpus")
    names = [card.name for card in catalogue.cards()]

    listed = [line.split()[0] for line in finished.out.splitlines() if line]
    assert {"rtx-3090", "a100-80gb", "h200", "t4", "rtx-3060-12gb"} <= set(names)
    assert names == [word for word in listed if word in names]
    assert (0, "") == (finished.code, finished.err)


@pytest.mark.skipif(bool(nvml.present()), reason="this machine has a card")
def test_machine_without_a_card_says_so(memplan):
    """Without a card the first line says that none is needed."""
    first = memplan("gpus").out.splitlines()[0]

    assert "No NVIDIA card is in this machine; predictions need none." == first


def test_table_is_aligned_and_plain(memplan):
    """Rows are as wide as their header, in printable characters without trailing spaces."""
    lines = memplan("gpus").out.splitlines()
    header = next(at for at, line in enumerate(lines) if line.startswith("Name"))

    assert {len(lines[header])} == {len(line) for line in lines[header:]}
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
