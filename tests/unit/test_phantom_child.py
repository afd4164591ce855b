"""A child process on a phantom card: what calls give back, and what becomes of those that fail."""

import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from phantom_calls import address_space_limit, card_and_peak, crash, hang, mark, refuse

from memplan.device import catalogue
from memplan.errors import BadInputError, MemplanError
from memplan.host_memory import within_host_memory
from memplan.phantom.child import PhantomChild

PATHS = {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="module")
def child():
    """Return a child on an RTX 3090."""
    variables = PATHS | {"MEMPLAN_MARK": "here"}
    with PhantomChild(catalogue.card("rtx-3090"), variables=variables) as child:
        yield child


def test_each_call_meets_the_card_with_an_empty_allocator(child):
    first = child.call(card_and_peak, {"count": 1024})
    second = child.call(card_and_peak, {"count": 256})
    assert [[8, 6], 1024, 4096] == first
    assert [[8, 6], 256, 1024] == second


def test_a_call_may_write_a_file_and_print(child, tmp_path: Path):
    assert child.call(mark, {}, tmp_path / "mark.txt") is None
    assert (tmp_path / "mark.txt").read_text() == "here"


def test_an_error_of_ours_comes_back_as_itself(child):
    with pytest.raises(BadInputError, match=r"^No such thing as 'tree'.$"):
        child.call(refuse, {"name": "tree"})


def test_any_other_error_comes_back_with_its_kind_and_words(child):
    with pytest.raises(MemplanError, match=r"^ZeroDivisionError: division by zero$"):
        child.call(refuse, {"name": ""})


def test_a_crash_ends_its_own_call_alone(child):
    with pytest.raises(MemplanError, match="ended its process on the phantom card by signal 11"):
        child.call(crash, {})
    assert child.call(card_and_peak, {"count": 256})[1] == 256


def test_a_child_is_not_held_to_its_parents_part_of_the_memory():
    """Libraries that cannot be loaded within it would be left out, and answers with them."""
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    with (
        within_host_memory(64),
        PhantomChild(catalogue.card("t4"), variables=variables) as limited,
    ):
        assert limited.call(address_space_limit, {}) == resource.getrlimit(resource.RLIMIT_AS)[1]


def test_a_child_that_does_not_start_says_so():
    with (
        PhantomChild(catalogue.card("t4"), imports=("no_such_module",)) as child,
        pytest.raises(MemplanError, match="ended before it answered"),
    ):
        child.call(card_and_peak, {"count": 1})


def test_a_call_that_hangs_is_ended_with_the_child():
    """Nobody waits for ever, neither for the answer nor for the end of the child."""
    with PhantomChild(catalogue.card("t4"), imports=(), variables=PATHS) as child:
        with pytest.raises(MemplanError, match="ended before it answered"):
            child.call(hang, {}, seconds=1.0)
        assert child.has_ended


def test_a_child_is_ended_when_the_one_who_waits_is_interrupted():
    """The work would keep the next call waiting, and the end of this process."""
    with PhantomChild(catalogue.card("t4"), imports=(), variables=PATHS) as child:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            child.call(hang, {})
        assert child.has_ended
