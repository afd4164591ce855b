"""Host copies of storages, the stated rules, and reads; what a card is not needed for."""

import pytest
import torch

from memplan.errors import UsageError
from memplan.recording.find_batch import batch_option
from memplan.recording.host_reads import HostReads
from memplan.recording.host_values import HostValues
from memplan.recording.value_rules import ValueRules


def test_views_share_the_copy_of_their_storage():
    """What is written through one view is read through another."""
    values = HostValues()
    whole = torch.zeros(2, 3)
    assert values.keep(whole, torch.arange(6.0).view(2, 3), by_rule=False)
    column = whole[:, 1]
    host = values.view(column, values.content(column))
    host.fill_(9.0)

    assert [[0, 9, 2], [3, 9, 5]] == values.view(whole, values.content(whole)).tolist()


def test_a_part_of_an_unknown_whole_is_not_taken():
    """The rest of its storage would be made up."""
    values = HostValues()
    assert not values.keep(torch.zeros(4)[:2], torch.ones(2), by_rule=False)


def test_a_fresh_result_in_a_larger_storage_is_taken():
    """Operators that shrink their result leave it in the storage they began with."""
    values = HostValues()
    shrunk = torch.zeros(10)[:3]
    assert values.keep(shrunk, torch.ones(3), by_rule=False, is_fresh=True)
    assert [1, 1, 1] == values.view(shrunk, values.content(shrunk)).tolist()


def test_large_storages_have_no_copy():
    """The limit is on the storage, not on the view."""
    values = HostValues(limit_bytes=16)
    assert not values.keep(torch.zeros(5), torch.zeros(5), by_rule=False)
    assert values.keep(torch.zeros(4), torch.zeros(4), by_rule=False)


def test_a_freed_storage_is_never_mistaken_for_a_new_one():
    """After any number of storages made and freed, a new one is unknown."""
    values = HostValues()
    for _ in range(2000):
        tensor = torch.zeros(8)
        assert values.content(tensor) is None
        values.keep(tensor, torch.ones(8), by_rule=False)
        del tensor

    assert len(values) < 1100


def test_a_rule_marks_all_that_it_has_a_part_in():
    """A content is by rule once any of it is."""
    values = HostValues()
    tensor = torch.zeros(2)
    values.keep(tensor, torch.ones(2), by_rule=False)
    values.keep(tensor[:1], torch.ones(1), by_rule=True)

    assert values.content(tensor).by_rule


def test_a_constant_mask_of_any_size_takes_no_memory():
    """Its view has the shape and the one value."""
    values = HostValues(limit_bytes=16)
    mask = torch.zeros(1 << 20, dtype=torch.bool)
    values.keep_constant(mask, value=True)
    view = values.view(mask, values.content(mask))

    assert mask.shape == view.shape
    assert 0 == view.stride(0)
    assert bool(view.all())


@pytest.mark.parametrize(
    ("elements", "count"), [(0, 0), (1, 1), (50, 1), (100, 1), (1000, 10), (86016, 860)]
)
def test_a_mask_has_the_stated_part_and_never_none(elements, count):
    """One in a hundred, rounded, at least one of any."""
    rules = ValueRules()

    assert count == rules.count(elements)
    assert count == int(rules.mask(torch.Size([elements])).sum())


def test_true_elements_are_evenly_spread():
    """No stretch has them all, as no image has all positives."""
    mask = ValueRules(selected=0.25).mask(torch.Size([4, 100]))

    assert [25, 25, 25, 25] == mask.sum(1).tolist()


def test_numbers_read_as_the_rules_state():
    """Floats read as 2, integers as 0 so that they index, a truth as true."""
    reads = HostReads(ValueRules())

    assert 2.0 == reads.number(torch.float16)
    assert 0 == reads.number(torch.int64)
    assert reads.number(torch.bool) is True
    assert 3 == sum(reads.by_rule.values())
    assert 0 == reads.num_from_host


def test_a_loop_without_a_step_is_ended_and_one_with_steps_is_not():
    """The count begins anew after each step."""
    reads = HostReads(ValueRules())
    for _ in range(30000):
        reads.number(torch.float32)
        reads.end_step()
    numbers = (reads.number(torch.float32) for _ in range(30000))
    with pytest.raises(RuntimeError, match=r"test_recording_values.py:\d+ has read a value"):
        sum(numbers)


@pytest.mark.parametrize(
    ("command", "name", "changed"),
    [
        (("python", "t.py", "--batch", "16"), "--batch", ("python", "t.py", "--batch", "7")),
        (("python", "t.py", "--batch=16"), "--batch", ("python", "t.py", "--batch=7")),
        (
            ("yolo", "train", "batch=16", "imgsz=64"),
            "batch",
            ("yolo", "train", "batch=7", "imgsz=64"),
        ),
        (("python", "t.py", "-b", "16", "--x"), "-b", ("python", "t.py", "-b", "7", "--x")),
    ],
)
def test_the_batch_is_changed_where_the_command_gives_it(command, name, changed):
    """After the option, or behind its equals sign."""
    option = batch_option(command, name)

    assert 16 == option.value
    assert changed == option.set_to(command, 7)


@pytest.mark.parametrize("command", [("python", "t.py"), ("python", "t.py", "--batch", "auto")])
def test_a_command_without_a_batch_is_refused(command):
    """The message names the option."""
    with pytest.raises(UsageError, match="--batch"):
        batch_option(command, "--batch")
