"""Memory outside the allocator."""

import pytest

from memplan.device.catalogue import card
from memplan.device.context import (
    EAGER_LOADING_BYTES,
    outside_allocator,
    outside_allocator_bytes,
)
from memplan.device.nccl import NVLINK_BYTES, communicator_bytes
from memplan.errors import BadInputError
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

    assert EAGER_LOADING_BYTES == eager.num_bytes - lazy.num_bytes
    assert "eager" in eager.source


def test_impossible_numbers_are_refused():
    """No device, or less than no memory, is an error with the value in it."""
    with pytest.raises(BadInputError, match="devices 0"):
        outside_allocator(card("t4"), devices=0)
    with pytest.raises(BadInputError, match="-1 bytes"):
        outside_allocator(card("t4"), given_bytes=-1)
