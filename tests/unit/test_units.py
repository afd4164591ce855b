"""Bytes, seconds and digits as people read and write them."""

import pytest

from memplan.errors import UsageError
from memplan.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    format_seconds,
    gib,
    parse_bytes,
    three_digits,
)


@pytest.mark.parametrize(
    ("expected", "num_bytes"),
    [
        ("0 B", 0),
        ("1023 B", KIB - 1),
        ("1.00 KiB", KIB),
        ("512 KiB", 512 * KIB),
        ("1.50 MiB", 3 * MIB // 2),
        ("17.3 GiB", int(17.3 * GIB)),
        ("-2.00 GiB", -2 * GIB),
        ("1024 GiB", 1024 * GIB),
    ],
)
def test_bytes_have_three_digits_and_a_unit(expected, num_bytes):
    """The unit is the largest that leaves at least one whole."""
    assert expected == format_bytes(num_bytes)


def test_gib_is_a_bare_number():
    """A column's header states the unit; its cells do not."""
    assert "1.50" == gib(3 * GIB // 2)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("0", 0),
        ("0.00123", 0.00123),
        ("1.23", 1.234),
        ("12.3", 12.34),
        ("123", 123.4),
        ("1234", 1234),
    ],
)
def test_three_digits_never_use_an_exponent(expected, value):
    """Three significant digits, all of the whole ones."""
    assert expected == three_digits(value)


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [
        ("41.0 s", 41),
        ("250 ms", 0.25),
        ("3 min 20 s", 200),
        ("2 h 05 min", 2 * 3600 + 5 * 60),
    ],
)
def test_durations_are_said_as_people_say_them(expected, seconds):
    """Milliseconds, seconds, minutes, hours."""
    assert expected == format_seconds(seconds)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (24 * GIB, "24GiB"),
        (80 * 10**9, "80GB"),
        (512 * MIB, "512 MiB"),
        (3 * GIB // 2, "1.5gib"),
        (GIB // 2, ".5GiB"),
        (1024, "1024"),
        (1 << 40, "1TiB"),
    ],
)
def test_amounts_are_read_with_their_units(expected, text):
    """Binary and decimal units differ; case and spaces do not matter."""
    assert expected == parse_bytes(text)


@pytest.mark.parametrize("text", ["", "lots", "24 GiBs", "-1GiB", "1,5GiB", "GiB", "0GiB", "0.1B"])
def test_what_is_no_amount_is_refused(text):
    """The text is quoted, and an example given."""
    with pytest.raises(UsageError, match="24GiB"):
        parse_bytes(text)
