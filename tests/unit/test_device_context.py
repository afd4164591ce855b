"""Memory outside the allocator."""

import pytest

from memplan.device.catalogue import card, cards
from memplan.device.context import (
    document,
    eager_adds_bytes,
    outside_allocator,
    outside_allocator_bytes,
    under_cuda,
)
from memplan.device.nccl import NVLINK_BYTES, communicator_bytes
from memplan.errors import BadInputError, UsageError
from memplan.units import GIB


def test_the_default_is_the_card_s():
    """Without more, the context is the catalogue's with its uncertainty."""
    t4 = card("t4")
    answer = outside_allocator(t4, environment={})

    assert (t4.context_bytes, "catalogue") == (answer.num_bytes, answer.source)
    assert t4.context_bytes + t4.context_uncertainty_bytes == answer.high_bytes
    assert t4.context_bytes == outside_allocator_bytes(t4)


def test_a_given_context_overrides_everything():
    """The user's own figure is taken as it is, for any number of devices."""
    answer = outside_allocator(card("t4"), devices=8, given_bytes=GIB)

    assert (GIB, 0, "as given") == (answer.num_bytes, answer.uncertainty_bytes, answer.source)


def test_a_calibrated_context_comes_before_the_catalogue():
    """A context measured on the card is used, and the answer says so."""
    calibrated = card("t4").with_context(200, 0, "measured")
    answer = outside_allocator(calibrated, environment={})

    assert (200, 0) == (answer.num_bytes, answer.uncertainty_bytes)
    assert "context measured" in answer.source


@pytest.mark.parametrize(("name", "seen"), [("a100-80gb", 1.08), ("h200", 1.14)])
def test_several_devices_add_nccl(name, seen):
    """With NCCL the figure is within 0.06 GiB of what public texts show (GiB)."""
    alone, together = (outside_allocator(card(name), devices=n, environment={}) for n in (1, 2))

    assert NVLINK_BYTES == together.num_bytes - alone.num_bytes
    assert together.uncertainty_bytes > alone.uncertainty_bytes
    assert seen == pytest.approx(together.num_bytes / GIB, abs=0.06)
    assert together == outside_allocator(card(name), devices=64, environment={})


def test_cards_over_pcie_need_fewer_channels():
    """Four channels of two connections and NCCL's code: a third of what NVLink's 24 take."""
    rtx_3090 = communicator_bytes(card("rtx-3090"))

    assert pytest.approx(176.5, abs=0.1) == rtx_3090 / 2**20
    assert rtx_3090 < NVLINK_BYTES / 3


def test_eager_loading_costs_more():
    """CUDA_MODULE_LOADING=EAGER adds what loading every kernel at start was seen to add."""
    lazy = outside_allocator(card("l4"), environment={"CUDA_MODULE_LOADING": "LAZY"})
    eager = outside_allocator(card("l4"), environment={"CUDA_MODULE_LOADING": "EAGER"})

    assert eager_adds_bytes(card("l4")) == eager.num_bytes - lazy.num_bytes
    assert pytest.approx(0.45, abs=0.001) == eager_adds_bytes(card("a100-40gb")) / GIB
    assert "eager" in eager.source


def test_old_cuda_loads_all_kernels():
    """Before CUDA 11.7 the context is the eager one, with its source, for every card alike."""
    a100 = card("a100-80gb")
    old = under_cuda(a100, "11.3")
    answer = outside_allocator(old, environment={"CUDA_MODULE_LOADING": "EAGER"})

    assert (round(1.90 * GIB), round(0.20 * GIB)) == (answer.num_bytes, answer.uncertainty_bytes)
    assert "under CUDA 11.3, all kernels loaded at the start" in answer.source
    assert a100 == under_cuda(a100, "11.7") == under_cuda(a100, "12.8.1")


def test_a_card_nobody_measured_borrows_the_nearest():
    """The figure is then another card's of the same kernels, named, and less certain."""
    own, borrowed = (under_cuda(card(name), "11.6") for name in ("rtx-3090", "rtx-3060-12gb"))

    assert own.context_bytes == borrowed.context_bytes
    assert own.context_uncertainty_bytes < borrowed.context_uncertainty_bytes
    assert "of the NVIDIA GeForce RTX 3090, the nearest measured" in borrowed.source
    assert under_cuda(card("v100-16gb"), "10.2").context_bytes == round(1.31 * GIB)


def test_every_card_has_an_answer_under_cuda_it_runs():
    """A figure, or one line that says which versions the card runs under."""
    releases = document()["releases"]
    for one in cards():
        first = releases["{}.{}".format(*one.compute_capability)]["first"]
        assert under_cuda(one, first).context_bytes > 0, one.name


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("h200", "11.3", "CUDA 11.3 has no kernels.*Give --cuda 11.8 or newer"),
        ("b200", "12.4", "12.8 or newer"),
        ("v100-32gb", "13.0", "Give --cuda 9.0 to 12.9"),
    ],
)
def test_cuda_that_cannot_run_a_card_is_refused(name, version, words):
    """The message says which versions can."""
    with pytest.raises(BadInputError, match=words):
        under_cuda(card(name), version)


@pytest.mark.parametrize("text", ["", "11", "x", "11.x", "-11.3", "11.3.1.2", "1²"])
def test_what_is_no_version_is_refused(text):
    """The message shows how one is written."""
    with pytest.raises(UsageError, match=r"Write it as 11\.3"):
        under_cuda(card("t4"), text)


def test_each_eager_figure_covers_its_samples():
    """What was read off lies within the uncertainty of the figure made of it."""
    for name, entry in document()["eager"].items():
        low, high = (entry["gib"] + sign * entry["uncertainty_gib"] for sign in (-1, 1))
        assert low - 1e-9 <= min(entry["samples_gib"]), name
        assert max(entry["samples_gib"]) <= high + 1e-9, name
        assert entry["sources"], name


def test_impossible_numbers_are_refused():
    """No device, or less than no memory, is an error with the value in it."""
    with pytest.raises(BadInputError, match="devices 0"):
        outside_allocator(card("t4"), devices=0)
    with pytest.raises(BadInputError, match="-1 bytes"):
        outside_allocator(card("t4"), given_bytes=-1)
