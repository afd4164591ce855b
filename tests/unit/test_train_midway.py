"""A run stopped in the middle of an epoch goes on as if it had not been."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pandas as pd
import pytest
import torch
from train_toy import NUM_IMAGES, Toy, toy_options

from memplan.errors import BadInputError
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint
from memplan.training.resuming import find_saved
from memplan.training.stopping import StoppedError

EVERY_STEP = 1e-9  # minutes


class _KilledError(Exception):
    """Stands for a process that ends between two lines."""


def _kill_at(number):
    """Return a listener that ends the run at its so-many-th save."""
    seen = []

    def on_event(name, facts):
        if name == "saved":
            seen.append(facts)
            if len(seen) == number:
                raise _KilledError

    return on_event


def _toy(**changes):
    return Toy(norm=True, dropout=0.3, **changes)


def _options(tmp_path, **changes):
    return toy_options(tmp_path, **{"save_every": EVERY_STEP, "batch": 2, "epochs": 3, **changes})


def _resume(workload, folder, **listener):
    options = TrainOptions(data=folder, resume=folder, device="cpu")
    return train(workload, options, **listener)


def _last(folder):
    return load_checkpoint(folder / "weights/last.pt")


def _flat(content, path=""):
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{path}/{key}")
    elif isinstance(content, (list, tuple)):
        for key, value in enumerate(content):
            yield from _flat(value, f"{path}/{key}")
    else:
        yield path, content


PARTS = ("model", "ema", "ema_updates", "optimizer", "scaler", "random_states", "steps",
         "best_fitness", "best_epoch", "best_metrics", "metrics", "epoch", "finished",
         "micro_batch_size", "validation_size", "position")  # fmt: skip


def _assert_same_end(expected, actual):
    """Compare checkpoints bit for bit, and results but for times."""
    for part in PARTS:
        pairs = zip(
            _flat(getattr(_last(expected), part)), _flat(getattr(_last(actual), part)), strict=True
        )
        for (name, value), (_, other) in pairs:
            is_tensor = isinstance(value, torch.Tensor)
            assert torch.equal(value, other) if is_tensor else value == other, (part, name)
    times = ["seconds", "images_per_second"]
    tables = [pd.read_csv(run / "results.csv") for run in (expected, actual)]
    one, other = (table.drop(columns=times) for table in tables)
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def _columns(folder):
    table = pd.read_csv(folder / "memory.csv")
    return list(zip(table["epoch"], table["step"], table["phase"], strict=True))


@pytest.fixture(name="folders")
def _folders(tmp_path):
    """Return two folders for runs to compare."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return tmp_path / "a", tmp_path / "b"


# Four saves an epoch: after each step, of 4, 4 and 2 images, and after its evaluation.
@pytest.mark.parametrize("kill", [1, 2, 3, 4, 5, 7, 9, 11])
def test_a_run_ended_at_any_save_equals_one_that_was_not(folders, kill):
    """Weights, average, optimizer, generators and records are the same, bit for bit."""
    straight = train(_toy(), _options(folders[0])).run_folder
    with pytest.raises(_KilledError):
        train(_toy(), _options(folders[1]), on_event=_kill_at(kill))
    folder = folders[1] / "runs/toy"
    _resume(_toy(), folder)

    _assert_same_end(straight, folder)
    assert _columns(straight) == _columns(folder)


def test_saving_midway_changes_nothing(folders):
    """A run that saves after every step ends as one that saves after epochs only."""
    every = train(_toy(), _options(folders[0])).run_folder
    never = train(_toy(), _options(folders[1], save_every=0)).run_folder

    _assert_same_end(every, never)


def test_a_run_ended_twice_in_one_epoch_goes_on(folders):
    """A resumed run saves and resumes again; seconds add up over the sessions."""
    straight = train(_toy(), _options(folders[0])).run_folder
    with pytest.raises(_KilledError):
        train(_toy(), _options(folders[1]), on_event=_kill_at(1))
    folder = folders[1] / "runs/toy"
    with pytest.raises(_KilledError):
        _resume(_toy(), folder, on_event=_kill_at(1))
    _resume(_toy(), folder)

    _assert_same_end(straight, folder)


@pytest.mark.parametrize("kill", [2, 6])
def test_a_run_that_backed_off_is_resumed_smaller(folders, kill):
    """The smaller micro-batch and validation batch are part of what is saved."""
    straight = train(_toy(most_images=3), _options(folders[0], batch=5)).run_folder
    with pytest.raises(_KilledError):
        train(_toy(most_images=3), _options(folders[1], batch=5), on_event=_kill_at(kill))
    folder = folders[1] / "runs/toy"
    summary = _resume(_toy(most_images=3), folder)

    _assert_same_end(straight, folder)
    assert (3, 0) == (summary.micro_batch_size, summary.back_offs)


def _signal_after_steps(number, steps):
    """Return a listener that sends this process a signal once so many steps are saved."""

    def on_event(name, facts):
        if name == "saved" and facts.get("images") == steps * 4:
            os.kill(os.getpid(), number)

    return on_event


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
)
def test_a_signal_saves_and_stops(folders, number):
    """Ctrl-C and SIGTERM finish the step; the run then goes on where it was."""
    straight = train(_toy(), _options(folders[0])).run_folder
    with pytest.raises(StoppedError, match=r"--resume .*runs/toy") as stopped:
        train(_toy(), _options(folders[1]), on_event=_signal_after_steps(number, 1))
    folder = folders[1] / "runs/toy"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    position = _last(folder).position
    _resume(_toy(), folder)

    assert f"({number.name})" in str(stopped.value)
    assert 128 + number == stopped.value.exit_code
    assert ("interrupted", number.name, 8, True) == tuple(
        events[-1][name] for name in ("event", "signal", "images", "saved")
    )
    assert 8 == position["images_seen"]
    _assert_same_end(straight, folder)


def test_signals_do_afterwards_what_they_did_before(tmp_path):
    """The handlers of the calling program come back."""
    before = signal.getsignal(signal.SIGTERM)
    train(Toy(), toy_options(tmp_path))

    assert before == signal.getsignal(signal.SIGTERM)


def test_a_run_outside_the_main_thread_trains(tmp_path):
    """Where signals cannot be caught the run goes on without."""
    done = []
    thread = threading.Thread(target=lambda: done.append(train(Toy(), toy_options(tmp_path))))
    thread.start()
    thread.join()

    assert 2 == done[0].epochs_done


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    """The first asks; the second is KeyboardInterrupt, as if nobody had caught it."""

    def on_event(name, facts):
        del facts
        if name == "saved":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Toy(), _options(tmp_path), on_event=on_event)


class _SignalledEvaluation(Toy):
    """Asks to stop while it predicts, once."""

    asked = False

    def predict(self, model, batch):
        if not self.asked:
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(model, batch)

    def make_validation_batch(self, micro_batch_size):
        del micro_batch_size
        return self.make_batch(1)


def test_a_signal_during_evaluation_stops_there(folders):
    """The epoch's training is kept, its evaluation is made again after the resume."""
    options = {"save_every": 0, "epochs": 1}
    workload = _SignalledEvaluation(norm=True, dropout=0.3)
    workload.asked = True
    straight = train(workload, _options(folders[0], **options)).run_folder
    with pytest.raises(StoppedError, match="10 of 10 images"):
        train(_SignalledEvaluation(norm=True, dropout=0.3), _options(folders[1], **options))
    folder = folders[1] / "runs/toy"
    assert NUM_IMAGES == _last(folder).position["images_seen"]
    workload = _SignalledEvaluation(norm=True, dropout=0.3)
    workload.asked = True
    _resume(workload, folder)

    _assert_same_end(straight, folder)


def test_with_nosave_a_signal_saves_nothing(tmp_path):
    """--nosave means the end of the run only, and the message says so."""
    workload = _SignalledEvaluation()
    with pytest.raises(StoppedError, match=r"nothing was saved, as --nosave asks"):
        train(workload, toy_options(tmp_path, nosave=True))

    assert [] == list((tmp_path / "runs/toy/weights").iterdir())


class _FullDisk:
    """Makes files fail to grow past a size, as a full disk does."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_full_disk_keeps_the_last_good_file_and_the_run(folders, capsys):
    """Saves and records that fail are warned of; the run goes on, and later saves work."""
    straight = train(_toy(), _options(folders[0], save_every=0)).run_folder
    full = []

    def on_event(name, facts):
        if name == "saved" and facts["epoch"] == 1 and not full:
            full.append(_FullDisk(2000))
            full[0].__enter__()
        elif name == "saved" and facts["epoch"] == 2:
            full[0].__exit__()
            assert 1 == _last(folders[1] / "runs/toy").epoch

    train(_toy(), _options(folders[1], save_every=0), on_event=on_event)

    _assert_same_end(straight, folders[1] / "runs/toy")
    text = capsys.readouterr().err
    assert "last.pt cannot be written: " in text
    assert "The previous file is kept." in text


def test_what_finds_no_room_is_saved_in_a_second_place(folders, capsys, monkeypatch):
    """The run is told of it once, goes on from there after a kill, and ends as if nothing was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders[1] / "cache"))
    straight = train(_toy(), _options(folders[0])).run_folder
    folder = folders[1] / "runs/toy"
    saves = []

    def on_event(name, facts):
        if name == "saved":
            saves.append(facts)
            if len(saves) == 1:  # from here on nothing can be written there
                (folder / "weights").rename(folder / "away")
                (folder / "weights").touch()
            if len(saves) == 6:
                raise _KilledError

    with pytest.raises(_KilledError):
        train(_toy(), _options(folders[1]), on_event=on_event)
    (folder / "weights").unlink()
    (folder / "away").rename(folder / "weights")
    text = capsys.readouterr().err
    _resume(_toy(), folder)

    assert 1 == text.count("last.pt cannot be written")
    assert "The state is saved in " in text
    assert "The run goes on from " in capsys.readouterr().err
    _assert_same_end(straight, folder)
    assert [] == list((folders[1] / "cache/memplan/rescued").iterdir())


def test_a_run_whose_folder_never_took_its_state_says_so_and_resumes(folders, monkeypatch, capsys):
    """Stopped with its state in the second place alone, it says how to go on, and does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders[1] / "cache"))
    straight = train(_toy(), _options(folders[0])).run_folder
    folder = folders[1] / "runs/toy"

    def on_event(name, _facts):
        if name == "started":
            (folder / "weights").rmdir()
            (folder / "weights").touch()
        if name == "saved":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="Continue with: memplan train --resume"):
        train(_toy(), _options(folders[1]), on_event=on_event)
    (folder / "weights").unlink()
    assert folder / "weights/last.pt" == find_saved(folder) == find_saved(find_saved(folder))
    _resume(_toy(), folder)

    assert "The run goes on from " in capsys.readouterr().err
    _assert_same_end(straight, folder)


def test_one_folder_takes_one_run_at_a_time(tmp_path):
    """A second resume of a run that is at work is refused, by processes."""
    with pytest.raises(_KilledError):
        train(_toy(), _options(tmp_path), on_event=_kill_at(1))
    folder = tmp_path / "runs/toy"
    code = (
        "import sys, time; from pathlib import Path;"
        "from memplan.training.run_folder import RunFolder;"
        "RunFolder(Path(sys.argv[1])).lock(); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert "locked\n" == other.stdout.readline()
        with pytest.raises(BadInputError, match=r"Another run is at work in .*toy"):
            _resume(_toy(), folder)
        other.kill()
    assert 3 == _resume(_toy(), folder).epochs_done


def test_a_project_that_cannot_be_written_is_one_line(tmp_path):
    """A file where the folder should be, and a resume whose records cannot be written."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(BadInputError, match="cannot be made") as caught:
        train(Toy(), toy_options(tmp_path))

    assert "\n" not in str(caught.value)


class _ShortData(Toy):
    """Promises more images than it gives."""

    def open_data(self, options):
        data = super().open_data(options)
        data.num_training_images = 14
        return data


def test_data_that_gives_fewer_images_than_promised_is_refused(tmp_path):
    """Positions would be wrong; the message names what the data owes."""
    with pytest.raises(BadInputError, match="must give num_training_images"):
        train(_ShortData(), toy_options(tmp_path))
