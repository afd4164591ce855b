"""A card of the catalogue in the words that the phantom runtime reads."""

import pytest

from memplan.device import catalogue
from memplan.errors import BadInputError
from memplan.phantom.description import describe

CARD = catalogue.card("rtx-3090")


def _words(**options):
    return dict(pair.split("=", 1) for pair in describe(CARD, **options).split(";"))


def test_a_card_is_described_by_the_catalogues_figures():
    """Capacity, context and limits are those of the card."""
    words = _words()

    assert "NVIDIA GeForce RTX 3090" == words["name"]
    assert CARD.capacity_bytes == int(words["total"])
    assert CARD.context_bytes == int(words["other"])
    assert ("8", "6", "82", "1") == tuple(words[k] for k in ("major", "minor", "sms", "devices"))


def test_the_bus_width_is_what_bandwidth_and_clock_say():
    """An RTX 3090 has 384 bits, an A100 5120."""
    assert "384" == _words()["bus_width"]
    assert ";bus_width=5120;" in describe(catalogue.card("a100-80gb")) + ";"


def test_capacity_others_and_devices_are_as_asked():
    """What the caller says stands before the catalogue."""
    words = _words(capacity_bytes=8 << 30, other_bytes=0, num_devices=2)

    assert (str(8 << 30), "0", "2") == tuple(words[key] for key in ("total", "other", "devices"))


@pytest.mark.parametrize(
    "options", [{"capacity_bytes": 100}, {"other_bytes": -1}, {"num_devices": 0}]
)
def test_an_impossible_card_is_refused_in_one_line(options):
    """No room, negative use, no device: the message has the value."""
    with pytest.raises(BadInputError, match=str(next(iter(options.values())))) as refused:
        describe(CARD, **options)

    assert "\n" not in str(refused.value)
