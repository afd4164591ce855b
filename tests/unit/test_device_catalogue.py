"""The catalogue of cards: names, figures and their sources."""

import pytest

from memplan.device import catalogue
from memplan.errors import BadInputError, UnknownNameError
from memplan.units import GIB

ENTRIES = catalogue.document()["cards"].items()
NOT_FIGURES = {"title", "device_names", "aliases", "sources"}
# The table of public out-of-memory texts: total as torch reports it, and what lies outside the
# allocator in each sample, GiB.
MEASURED = {
    "t4": (14.74, (0.12, 0.15)),
    "a10g": (22.03, (0.18, 0.18)),
    "rtx-3090": (23.69, (0.30, 0.48)),
    "rtx-4090": (23.64, (0.37, 0.45)),
    "v100-32gb": (31.73, (0.37, 0.39)),
    "rtx-5090": (31.36, (0.50, 0.60)),
    "a100-40gb": (39.38, (0.49, 0.51)),
    "a100-80gb": (79.15, (0.49, 0.50)),
    "h100-80gb": (79.10, (0.65, 0.65)),
    "h200": (139.80, (0.51, 0.66)),
}


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_every_figure_has_a_source(name, entry):
    """Each figure of a card belongs to one group, and each group names its document."""
    groups = catalogue.document()["figure_groups"]
    figures = [figure for group in groups.values() for figure in group]

    assert sorted(entry.keys() - NOT_FIGURES) == sorted(figures), name
    assert set(groups) == set(entry["sources"]), name
    assert all(len(document) > 15 for document in entry["sources"].values()), name


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_a_derived_figure_says_so(name, entry):
    """What a user reads of a card's origin tells a rule from a document."""
    source = catalogue.card(name).source

    for group in ("capacity", "context"):
        derived = entry["sources"][group].startswith("derived")
        assert derived == (f"{group} derived" in source), name


def test_the_catalogue_has_the_cards_people_train_on():
    """All the cards users are told of are there, under unique names."""
    names = [card.name for card in catalogue.cards()]
    wanted = (
        "t4 p100 v100-16gb v100-32gb rtx-2080-ti rtx-3060-12gb rtx-3070 rtx-3080-10gb "
        "rtx-3080-12gb rtx-3090 rtx-4060 rtx-4060-ti-16gb rtx-4070-ti rtx-4080 rtx-4090 rtx-5090 "
        "a10 a10g a30 a40 a100-40gb a100-80gb l4 l40s h100-80gb h200 b200"
    )

    assert set(wanted.split()) <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("card", catalogue.cards(), ids=lambda card: card.name)
def test_figures_are_in_the_range_of_real_cards(card):
    """Units are right: each figure lies where some NVIDIA card's does."""
    assert 7 * GIB < card.capacity_bytes < 200 * GIB
    assert 0.1 * GIB < card.context_bytes < 1 * GIB
    assert 0.1 * GIB < card.context_uncertainty_bytes < 0.3 * GIB
    assert 2e11 < card.bandwidth_bytes_per_second < 1e13
    assert 5e12 < card.fp32_flops < 2e14
    assert 20 <= card.multiprocessors <= 200
    assert 1 << 20 <= card.l2_bytes <= 1 << 27
    assert card.architecture.shared_memory_per_block_optin_bytes < 233_473


@pytest.mark.parametrize("card", catalogue.cards(), ids=lambda card: card.name)
def test_float32_peak_is_that_of_the_multiprocessors(card):
    """fp32 agrees with multiprocessors x lanes x 2 x boost clock within 13 %.

    13 %: the A10G is sold below what its clock allows, and datasheets round the clock.
    """
    lanes = 64 if card.compute_capability in {(6, 0), (7, 0), (7, 5), (8, 0)} else 128
    expected = card.multiprocessors * lanes * 2 * card.boost_clock_mhz * 1e6

    assert expected == pytest.approx(card.fp32_flops, rel=0.13)


@pytest.mark.parametrize("card", catalogue.cards(), ids=lambda card: card.name)
def test_bandwidth_is_that_of_the_memory_clock(card):
    """Bandwidth agrees with 2 x memory clock x a bus width that exists within 3 %.

    3 %: the H200 is sold at 4.8 TB/s where its clock would give 4.9.
    """
    widths = (128, 192, 256, 320, 352, 384, 512, 3072, 4096, 5120, 6144, 8192)
    width = card.bandwidth_bytes_per_second * 8 / (2 * card.memory_clock_mhz * 1e6)
    nearest = min(widths, key=lambda one: abs(one - width))

    assert nearest == pytest.approx(width, rel=0.03)


@pytest.mark.parametrize(("name", "measured"), MEASURED.items())
def test_measured_capacity_and_context_are_taken_over(name, measured):
    """Capacity is the published total, and context lies among the published samples."""
    card = catalogue.card(name)
    capacity, (low, high) = measured

    assert capacity == pytest.approx(card.capacity_bytes / GIB, abs=0.006)
    assert low - 0.01 <= card.context_bytes / GIB <= high + 0.01


def test_recorded_capacities_are_exact():
    """The totals that torch's own bytes are public for are those bytes."""
    assert catalogue.card("rtx-3060").capacity_bytes == 12622168064
    assert catalogue.card("rtx-4060").capacity_bytes == 8318222336
    assert catalogue.card("rtx-4060-ti-16gb").capacity_bytes == 16722821120


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rtx-3090", "rtx-3090"),
        ("RTX 3090", "rtx-3090"),
        ("rtx3090", "rtx-3090"),
        ("RTX_3090_Ti", "rtx-3090-ti"),
        ("rtx3090ti", "rtx-3090-ti"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("rtx-3060", "rtx-3060-12gb"),
        ("RTX 4060 Ti 16GB", "rtx-4060-ti-16gb"),
        ("T4", "t4"),
        ("Tesla T4", "t4"),
        ("A100 80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("h100", "h100-80gb"),
        ("H100 PCIe", "h100-pcie"),
        ("H200", "h200"),
    ],
)
def test_a_card_is_found_however_it_is_written(spelling, name):
    """Case, spaces, hyphens and the vendor's words do not matter."""
    assert name == catalogue.card(spelling).name


@pytest.mark.parametrize("card", catalogue.cards(), ids=lambda card: card.name)
def test_every_name_alias_and_title_finds_its_card(card):
    """What memplan prints for a card can be typed to get that card."""
    for spelling in (card.name, card.title, *catalogue.aliases(card.name)):
        assert card == catalogue.card(spelling), spelling


@pytest.mark.parametrize(
    ("spelling", "both"),
    [
        ("a100", "a100-40gb or a100-80gb"),
        ("V100", "v100-16gb or v100-32gb"),
        ("RTX 3080", "rtx-3080-10gb or rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti-8gb or rtx-4060-ti-16gb"),
    ],
)
def test_a_name_of_several_cards_is_refused_with_all_of_them(spelling, both):
    """An ambiguous name is an error that lists the cards it may be."""
    with pytest.raises(BadInputError, match=f"may be several: say {both}"):
        catalogue.card(spelling)


def test_an_unknown_name_suggests_the_nearest():
    """A mistyped name is answered with the name it resembles."""
    with pytest.raises(UnknownNameError, match="Did you mean 'rtx-3090'"):
        catalogue.card("rtx-3900")


@pytest.mark.parametrize("name", ["", "nvidia", "rtx", "gtx-1080", "100"])
def test_a_name_of_no_card_is_refused(name):
    """A name that says too little, or of a card not listed, finds none."""
    with pytest.raises(UnknownNameError, match="memplan gpus"):
        catalogue.card(name)


def test_an_unknown_compute_capability_is_refused():
    """Limits are given for known architectures only, never guessed."""
    assert catalogue.architecture((8, 6)).max_threads_per_multiprocessor == 1536
    with pytest.raises(UnknownNameError, match=r"'3\.5'"):
        catalogue.architecture((3, 5))
