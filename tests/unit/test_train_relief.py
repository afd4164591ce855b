"""What a run does about memory that is about to run out: on a phantom card, and in its files."""

import io
import json
from pathlib import Path

import pytest
from train_toy import Toy, toy_options

from memplan.device import catalogue
from memplan.phantom.child import PhantomChild
from memplan.training import saved_options, train
from memplan.training.loop import Run
from memplan.training.progress import Progress
from memplan.training.run_folder import create_run_folder
from memplan.training.setup import prepare
from memplan.training.watch import Cause, Finding

_PATIENCE = 240.0
VARIABLES = {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="module")
def child():
    """A process on a card of 1000 MiB."""
    with PhantomChild(
        catalogue.card("rtx-3090"), capacity_bytes=1000 << 20, other_bytes=0, variables=VARIABLES
    ) as started:
        yield started


def _run(child, folder, wrong, epochs):
    from watch_child import run

    events, allocator, size = child.call(
        run, {"folder": str(folder), "wrong": wrong, "epochs": epochs}, seconds=_PATIENCE
    )
    watched = [event for event in events if event["event"] != "saved"]
    return [one.get("cause", one["event"]) for one in watched[1:-1]], watched, allocator, size


def test_watching_takes_less_than_a_hundredth(child):
    """Of the time before each reading: some are left out. One takes less than a millisecond."""
    from watch_child import cost

    shares, seconds = child.call(cost, {}, seconds=_PATIENCE)

    assert max(shares) < 0.01
    assert sorted(seconds)[len(seconds) // 2] < 0.001


def test_a_leak_is_told_early_and_postponed(child, tmp_path):
    """Of 4 MiB a step: told at once, then the micro-batch is halved before memory runs out."""
    names, events, _, size = _run(child, tmp_path, "leak", 60)

    assert ["leak", "leak", "micro_batch_lowered"] == names[:3]
    assert ("none", "smaller micro-batch") == (events[1]["action"], events[2]["action"])
    assert events[1]["steps_left"] > 100 >= events[2]["steps_left"]
    assert "micro_batch_tried_again" not in names
    assert 1 == size


def test_what_is_held_and_not_used_is_given_back(child, tmp_path):
    """Blocks that are never of the size that is needed pile up, and the cache is emptied."""
    names, events, _, _ = _run(child, tmp_path, "fragmentation", 12)

    assert "fragmentation" == names[0]
    assert "cache emptied" == events[1]["action"]


def test_a_crowded_batch_is_survived_smaller_and_the_planned_size_comes_back(child, tmp_path):
    """600 MiB more in one step: smaller from the next one on, as planned from step 100 on."""
    names, _, _, size = _run(child, tmp_path, "crowd", 21)

    assert ["crowded batch", "micro_batch_lowered", "micro_batch_tried_again"] == names
    assert 2 == size


def test_on_a_cpu_nothing_is_watched(tmp_path):
    """There is no device whose memory could be read."""
    run = _fresh(tmp_path)
    run.relief.follow(1)

    assert run.records.memory.watch is None
    assert 0 == run.records.memory.watching_seconds


def _fresh(tmp_path, **changes):
    options = toy_options(tmp_path, epochs=1, **changes)
    folder = create_run_folder(options.project, options.name, exist_ok=False)
    told = folder.add_event
    return Run(prepare(Toy(), options), folder, Progress(1, 0, io.StringIO()), told)


def _finding(cause):
    return Finding(cause=cause, grown_bytes=1 << 30, bytes_a_step=1, steps_left=9, is_urgent=True)


def test_segments_expand_once_the_run_is_resumed(tmp_path):
    """Fragments that came back after the cache was emptied; the checkpoint holds the setting."""
    run = _fresh(tmp_path)
    run.relief.act(_finding(Cause.FRAGMENTATION), 1)
    run.relief.act(_finding(Cause.FRAGMENTATION), 2)
    run._save_midway()
    run.folder.release()

    lines = map(json.loads, (run.folder.path / "events.jsonl").read_text().splitlines())
    actions = [line["action"] for line in lines if line["event"] == "memory_watch"]
    assert ["cache emptied", "expandable segments at the next restart"] == actions
    assert "expandable_segments:True" == saved_options(run.folder.path).spec.allocator
    resumed = toy_options(tmp_path, resume=run.folder.path)
    assert 1 == train(Toy(), resumed, stream=io.StringIO()).epochs_done


def test_one_image_that_is_too_much_recomputes(tmp_path):
    """Nothing smaller is left; a resumed run recomputes too."""
    run = _fresh(tmp_path, batch=1)
    run.relief.act(_finding(Cause.LEAK), 1)
    run._after_step(run.runner, run._wishes())
    run._save_midway()
    run.folder.release()

    assert ("0", "4") == saved_options(run.folder.path).spec.recompute
    assert run.setup.step.lighter() is None


def test_without_the_guard_only_words_are_said(tmp_path):
    """`--no-guard` leaves the recipe's micro-batch alone."""
    run = _fresh(tmp_path, guard=False)
    run.relief.act(_finding(Cause.CROWDED), 1)

    assert not run.relief.wants_smaller
    run.folder.release()


@pytest.mark.parametrize(("num_pieces", "on_host"), [(4, False), (8, True)])
def test_an_updates_copies_take_only_what_is_held(child, num_pieces, on_host):
    """Where what is held is in pieces too small for them, they go to the host, and stay there."""
    from watch_child import copies

    grown, is_on_host = child.call(copies, {"num_pieces": num_pieces}, seconds=_PATIENCE)

    assert grown <= 0
    assert on_host == is_on_host


@pytest.mark.parametrize(
    ("plan", "expected"),
    [((5, 20, 20), ""), ((4, 20, 20), "Allocated"), ((5, 19, 20), "Reserved"),
     ((5, 20, 19), "Device-used")],
)  # fmt: skip
def test_each_step_is_held_against_the_plan(child, plan, expected):
    """5 MiB are allocated, for which the allocator takes 20 of the card, all that is used."""
    from watch_child import above

    names = ("allocated", "reserved", "used")
    assert expected == child.call(above, dict(zip(names, plan, strict=True)), seconds=_PATIENCE)


def test_the_average_leaves_a_device_that_is_short_of_room(child):
    """An update that found none is taken; evaluation brings it back, saving takes it in pieces."""
    from watch_child import spared

    found = child.call(spared, {}, seconds=_PATIENCE)

    assert not found["refused"]
    assert found["given"] >= 8  # of two layers of 4 MiB
    assert ["cuda", "cpu"] == found["devices"]
    assert (["cuda", "cpu"], 0) == (found["saved"], found["held"])
