"""The palette keeps its promises: order, colours, separation for every eye, readable text."""

import itertools
import math

import numpy as np
import pytest

from memplan.report import theme

# Source: Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", 2009, severity 1.0, applied to linear RGB.
MACHADO = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def _lab(colour, sight):
    """CIE L*a*b* (D65) of a colour as one kind of sight sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(MACHADO[sight] @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    scaled = to_xyz @ linear / np.array([0.95047, 1.0, 1.08883])
    root = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    return 116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])


def _delta_e_2000(one, other):
    """Colour difference CIEDE2000. Source: Sharma, Wu, Dalal, 2005."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean_c = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(mean_c**7 / (mean_c**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
    h1, h2 = math.degrees(math.atan2(b1, a1)) % 360, math.degrees(math.atan2(b2, a2)) % 360
    dh = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    mean_h = h1 + h2 if c1 * c2 == 0 else (h1 + dh / 2) % 360
    big_h = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(dh / 2))
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * math.cos(math.radians(mean_h - 30))
        + 0.24 * math.cos(math.radians(2 * mean_h))
        + 0.32 * math.cos(math.radians(3 * mean_h + 6))
        - 0.20 * math.cos(math.radians(4 * mean_h - 63))
    )
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / math.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    turn = math.sin(math.radians(60 * math.exp(-(((mean_h - 275) / 25) ** 2))))
    r_t = -2 * math.sqrt(mean_c**7 / (mean_c**7 + 25**7)) * turn
    l_term, c_term, h_term = (l2 - l1) / s_l, (c2 - c1) / s_c, big_h / s_h
    return math.sqrt(l_term**2 + c_term**2 + h_term**2 + r_t * c_term * h_term)


def _neighbours():
    """Pairs of fills that touch; the context is told by its dark edge instead of its fill."""
    fills = list(dict.fromkeys(band.fill for band in theme.BANDS if band.name != "context"))
    without_unattributed = ("#56B4E9", "#DDDDDD")  # as most reports are stacked
    return [*itertools.pairwise(fills), without_unattributed]


def test_bands_have_the_fixed_order_and_colours():
    """Bands come bottom to top in one order, each in its colour."""
    expected = [
        ("parameter", "#CC79A7"),
        ("optimizer_state", "#F0E442"),
        ("gradient", "#009E73"),
        ("input", "#E69F00"),
        ("activation", "#0072B2"),
        ("workspace", "#56B4E9"),
        ("temporary", "#56B4E9"),
        ("unattributed", "#4D4D4D"),
        ("cached", "#DDDDDD"),
        ("context", "#FFFFFF"),
    ]

    assert expected == [(band.name, band.fill) for band in theme.BANDS]


def test_hatching_tells_temporary_from_workspace():
    """The two categories of one colour differ by a hatch; cached is hatched, context edged."""
    band = theme.BAND_OF

    assert band["workspace"].hatch is None
    assert band["temporary"].hatch
    assert band["cached"].hatch
    assert theme.contrast(band["context"].edge, theme.PAPER) >= 7


def test_the_difference_formula_gives_the_published_values():
    """Three pairs of Sharma's test data come out as printed there."""
    pairs = [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ]

    for one, other, expected in pairs:
        assert expected == pytest.approx(_delta_e_2000(one, other), abs=1e-4)


@pytest.mark.parametrize("sight", MACHADO)
def test_neighbouring_bands_stay_apart(sight):
    """Neighbours differ by the style's 17.9 or more in every kind of sight."""
    worst = min(_delta_e_2000(_lab(a, sight), _lab(b, sight)) for a, b in _neighbours())

    assert worst >= 17.9


def test_grey_print_keeps_neighbours_apart():
    """Neighbouring bands differ by 12 or more in lightness."""
    worst = min(abs(_lab(a, "normal")[0] - _lab(b, "normal")[0]) for a, b in _neighbours())

    assert worst >= 12


def test_text_on_a_band_reads_well():
    """Text is white on activation and unattributed, black elsewhere, always at 4.5:1 or better."""
    white = {band.name for band in theme.BANDS if theme.ink_on(band.fill) == theme.PAPER}

    assert {"activation", "unattributed"} == white
    assert min(theme.contrast(b.fill, theme.ink_on(b.fill)) for b in theme.BANDS) >= 4.5


def test_lines_and_captions_stand_out_from_paper():
    """Line colours reach 3:1 on white, captions 7:1."""
    assert min(theme.contrast(colour, theme.PAPER) for colour in theme.LINE_COLOURS) >= 3
    assert theme.contrast(theme.QUIET_INK, theme.PAPER) >= 7


def test_drawing_leaves_the_users_settings_alone():
    """A user's own font size does not reach our pages, and is back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 3.0}):
        with theme.drawing():
            inside = mpl.rcParams["font.size"]
        after = mpl.rcParams["font.size"]

    assert (theme.LABEL_POINTS, 3.0) == (inside, after)
