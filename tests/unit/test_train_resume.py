"""Resuming a run equals never having stopped."""

import json

import pandas as pd
import pytest
import torch
from train_toy import Toy, toy_options

from memplan.errors import BadInputError
from memplan.training import TrainOptions, saved_options, train
from memplan.training.checkpoint import load_checkpoint


def _stop_after(epoch):
    def on_event(name, facts):
        if name == "saved" and facts["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_event


def _stopped_run(tmp_path, epoch=1, **changes):
    workload = changes.pop("workload", None) or Toy(norm=True, dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        train(workload, toy_options(tmp_path, **changes), on_event=_stop_after(epoch))
    return tmp_path / "runs/toy"


def _resume(workload, folder):
    options = TrainOptions(data=folder, resume=folder, device="cpu")
    return train(workload, options)


def _flat(content, path=""):
    if isinstance(content, torch.Tensor):
        yield path, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{path}/{key}")
    elif isinstance(content, (list, tuple)):
        for key, value in enumerate(content):
            yield from _flat(value, f"{path}/{key}")


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_resuming_gives_bit_identical_weights(tmp_path, optimizer):
    """Two epochs straight equal one, a stop, and one more: weights, average, states, generators."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = train(
        Toy(norm=True, dropout=0.3), toy_options(tmp_path / "a", optimizer=optimizer)
    ).run_folder
    stopped = _stopped_run(tmp_path / "b", optimizer=optimizer)
    torch.rand(3)  # what happens between the sessions does not matter
    _resume(Toy(norm=True, dropout=0.3), stopped)

    expected = load_checkpoint(straight / "weights/last.pt")
    actual = load_checkpoint(stopped / "weights/last.pt")
    for part in ("model", "ema", "optimizer", "random_states"):
        pairs = zip(_flat(getattr(expected, part)), _flat(getattr(actual, part)), strict=True)
        for (name, tensor), (_, other) in pairs:
            assert torch.equal(tensor, other), name
    assert expected.ema_updates == actual.ema_updates
    assert expected.best_metrics == actual.best_metrics
    assert expected.random_states["python"] == actual.random_states["python"]


def test_resuming_continues_the_same_records(tmp_path):
    """The folder keeps one row an epoch, and the events tell of the resume."""
    folder = _stopped_run(tmp_path)
    _resume(Toy(norm=True, dropout=0.3), folder)

    lines = (folder / "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert [1, 2] == pd.read_csv(folder / "results.csv")["epoch"].tolist()
    assert ["started", "saved", "interrupted", "resumed", "saved", "finished"] == events


def test_an_epoch_recorded_after_the_last_checkpoint_is_not_counted_twice(tmp_path):
    """Rows of an epoch whose checkpoint was never written are dropped before it runs again."""
    folder = _stopped_run(tmp_path)
    results = folder / "results.csv"
    row = results.read_text().splitlines()[1]
    results.write_text(results.read_text() + "2" + row[1:] + "\n")
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "half')
    _resume(Toy(norm=True, dropout=0.3), folder)

    assert [1, 2] == pd.read_csv(results)["epoch"].tolist()
    for line in (folder / "events.jsonl").read_text().splitlines():
        json.loads(line)


def test_mosaics_stay_closed_after_a_resume(tmp_path):
    """The last epochs are augmented lightly also when the run was resumed among them."""
    folder = _stopped_run(tmp_path, epoch=3, epochs=4, close_mosaic=2)
    workload = Toy(norm=True, dropout=0.3)
    _resume(workload, folder)

    assert [(3, False)] == workload.data.calls


def test_a_finished_run_says_what_it_is(tmp_path):
    """There is nothing to resume, which is no fault; the data need not be there any more."""
    done = train(Toy(), toy_options(tmp_path))
    (tmp_path / "data.yaml").unlink()
    again = _resume(Toy(), done.run_folder)

    assert again.was_finished
    assert (2, done.best_epoch, done.metrics) == (
        again.epochs_done,
        again.best_epoch,
        again.metrics,
    )


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-900] + b"x" * 900])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    """The run goes on an epoch earlier, says so, and ends as it would have."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = train(Toy(norm=True, dropout=0.3), toy_options(tmp_path / "a", epochs=3))
    folder = _stopped_run(tmp_path / "b", epoch=2, epochs=3)
    last = folder / "weights/last.pt"
    last.write_bytes(damage(last.read_bytes()))
    _resume(Toy(norm=True, dropout=0.3), folder)

    assert "is damaged or cut short" in (folder / "events.jsonl").read_text()
    assert [1, 2, 3] == pd.read_csv(folder / "results.csv")["epoch"].tolist()
    expected = load_checkpoint(straight.run_folder / "weights/last.pt").model
    for name, tensor in load_checkpoint(last).model.items():
        assert torch.equal(expected[name], tensor), name


def test_records_that_are_garbage_are_one_line_each(tmp_path):
    """They are kept aside where they are no text, and the run goes on."""
    folder = _stopped_run(tmp_path)
    for name in ("results.csv", "memory.csv", "events.jsonl"):
        (folder / name).write_bytes(b"\xff\xfe\x00garbage,\x00\n5\n")
    _resume(Toy(norm=True, dropout=0.3), folder)

    assert 3 == (folder / "events.jsonl").read_text().count("is kept as")
    assert (folder / "memory.csv.damaged").exists()


def test_the_saved_options_are_those_of_the_run(tmp_path):
    """The command line learns from them which configuration to build."""
    folder = _stopped_run(tmp_path, cfg="toy-s", patience=7)

    options = saved_options(folder)

    assert ("toy-s", 7, 2) == (options.cfg, options.patience, options.epochs)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    """Weights that do not fit are a one-line error."""
    folder = _stopped_run(tmp_path)

    with pytest.raises(BadInputError, match="does not fit toy") as caught:
        _resume(Toy(norm=False), folder)

    assert "\n" not in str(caught.value)


def test_a_run_resumed_on_other_data_says_so(tmp_path, capsys):
    """What changed is named; the same data are no news."""
    facts = {"training images": "a", "class names": "b"}

    class Recognised(Toy):
        def open_data(self, options):
            data = super().open_data(options)
            data.fingerprint = lambda: dict(facts)
            return data

    workload = Recognised()
    folder = _stopped_run(tmp_path, workload=workload)
    capsys.readouterr()
    facts["class names"] = "c"
    _resume(workload, folder)

    printed = capsys.readouterr()
    assert "has changed since this run was saved: class names." in printed.out + printed.err
