"""The run: steps, evaluation, early stop, what is frozen, saved and written."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml
from train_toy import NUM_IMAGES, Toy, ToyData, toy_options

from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint, save_checkpoint, strip_checkpoint
from memplan.training.setup import find_device, freeze, layer_paths, prepare


def _results(summary):
    return pd.read_csv(summary.run_folder / "results.csv")


def _last(summary):
    return load_checkpoint(summary.run_folder / "weights/last.pt")


def test_a_run_leaves_its_records(tmp_path):
    """Options, hyperparameters, results, memory, events and both checkpoints are there."""
    summary = train(Toy(), toy_options(tmp_path))

    assert [
        "args.yaml",
        "events.jsonl",
        "hyp.yaml",
        "memory.csv",
        "results.csv",
        "weights",
    ] == sorted(path.name for path in summary.run_folder.iterdir())
    assert 4 == yaml.safe_load((summary.run_folder / "args.yaml").read_text())["batch"]
    assert 0.001 == yaml.safe_load((summary.run_folder / "hyp.yaml").read_text())["lr0"]
    assert ["epoch", "train/error", "metrics/fitness"] == _results(summary).columns[:3].tolist()


def test_on_a_cpu_memory_is_the_process_s(tmp_path):
    """Device columns are empty and the host's resident bytes are measured."""
    summary = train(Toy(), toy_options(tmp_path))

    memory = pd.read_csv(summary.run_folder / "memory.csv")
    assert memory["live_reserved_bytes"].isna().all()
    assert memory["host_resident_bytes"].gt(1 << 20).all()
    assert {"train", "validation"} == set(memory["phase"])
    assert summary.reserved_peak_bytes is None


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    """Steps of 5 x 2 images and of 10 images give the same weights."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(Toy(), toy_options(tmp_path / "a", batch=10, accumulate=1))
    gathered = train(Toy(), toy_options(tmp_path / "b", batch=2, accumulate=5))

    for name, weight in _last(whole).model.items():
        torch.testing.assert_close(weight, _last(gathered).model[name], rtol=1e-5, atol=1e-7)


def test_gradients_left_at_an_epoch_s_end_are_used(tmp_path):
    """Ten images in steps of eight are two steps: the second with the two images left."""
    summary = train(Toy(), toy_options(tmp_path, batch=2, effective_batch=8, epochs=1))

    assert [2] == _results(summary)["steps"].tolist()


def test_recompute_changes_nothing(tmp_path):
    """Recomputing a module in backward gives the same weights and statistics, bit for bit."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = train(Toy(norm=True), toy_options(tmp_path / "a"))
    again = train(Toy(norm=True), toy_options(tmp_path / "b", recompute=("0", "2")))

    for name, weight in _last(plain).model.items():
        assert torch.equal(weight, _last(again).model[name]), name


def test_the_last_epochs_close_the_mosaics(tmp_path):
    """With --close-mosaic 2, the last two of four epochs are augmented lightly."""
    workload = Toy()
    train(workload, toy_options(tmp_path, epochs=4, close_mosaic=2))

    assert [(0, True), (1, True), (2, False), (3, False)] == workload.data.calls


def _with_fitness(values):
    workload = Toy()
    workload.data = ToyData()
    workload.data.fitness = list(values)
    return workload


def test_the_best_epoch_is_kept_and_equal_counts_as_better(tmp_path):
    """best.pt is of the last epoch with the highest fitness."""
    summary = train(_with_fitness([0.2, 0.5, 0.5, 0.1]), toy_options(tmp_path, epochs=4))

    best = load_checkpoint(summary.run_folder / "weights/best.pt")
    assert 3 == summary.best_epoch == best.epoch
    assert {"fitness": 0.5} == summary.best_metrics
    assert {"fitness": 0.1} == summary.metrics


def test_the_best_weights_are_stripped_once_the_run_is_done(tmp_path):
    """best.pt keeps weights, in half precision, and facts; last.pt keeps all that it had."""
    summary = train(Toy(), toy_options(tmp_path, epochs=2))

    best, last = (load_checkpoint(summary.run_folder / f"weights/{n}.pt") for n in ("best", "last"))
    assert (None, {}, {}) == (best.ema, best.optimizer, best.random_states)
    assert {torch.float16} == {tensor.dtype for tensor in best.model.values()}
    assert last.optimizer["param_groups"]
    kept = last.model if last.ema is None else last.ema
    assert all(torch.equal(best.model[name], kept[name].half()) for name in kept)


def test_a_weight_that_half_precision_does_not_hold_stays_as_it_is(tmp_path):
    """A value above 65,504 would be infinite."""
    path = train(Toy(), toy_options(tmp_path, epochs=1)).run_folder / "weights/last.pt"
    whole = load_checkpoint(path)
    state = {name: tensor * 0 + 1e6 for name, tensor in whole.model.items()}
    save_checkpoint(path, replace(whole, model=state, ema=None))

    strip_checkpoint(path)

    assert all(torch.equal(tensor, state[n]) for n, tensor in load_checkpoint(path).model.items())


def test_patience_stops_a_run_that_gets_no_better(tmp_path):
    """Two epochs without a better fitness end the run; it counts as finished."""
    workload = _with_fitness([0.5, 0.4, 0.3, 0.2, 0.1])
    summary = train(workload, toy_options(tmp_path, epochs=5, patience=2))

    assert (3, True, 1) == (summary.epochs_done, summary.stopped_early, summary.best_epoch)
    assert _last(summary).finished


def test_noval_evaluates_the_last_epoch_only(tmp_path):
    """The metrics' columns hold one value, in the last row."""
    summary = train(Toy(), toy_options(tmp_path, epochs=3, noval=True))

    assert [True, True, False] == _results(summary)["metrics/fitness"].isna().tolist()


def test_nosave_saves_at_the_end_only(tmp_path):
    """No checkpoint is written before the run's last epoch."""
    saved = []
    train(
        Toy(),
        toy_options(tmp_path, epochs=3, nosave=True),
        on_event=lambda name, facts: saved.append(facts["epoch"]) if name == "saved" else None,
    )

    assert [3] == saved


def test_save_period_keeps_epochs(tmp_path):
    """Every second epoch stays as a file of its own."""
    summary = train(Toy(), toy_options(tmp_path, epochs=4, save_period=2))

    assert ["best.pt", "epoch2.pt", "epoch4.pt", "last.pt", "previous.pt"] == sorted(
        path.name for path in (summary.run_folder / "weights").iterdir()
    )


def test_frozen_layers_do_not_move(tmp_path):
    """--freeze 1 keeps the first layer's initial weights; later ones train."""
    options = toy_options(tmp_path, freeze=(1,))
    before = prepare(Toy(), options).step.model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    after = _last(train(Toy(), options)).model

    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["4.weight"], after["4.weight"])


def test_layers_are_counted_inside_a_single_container():
    """A model that only wraps a Sequential is numbered by what is in it."""
    inner = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    model = torch.nn.Module()
    model.add_module("model", inner)

    assert ["model.0", "model.1"] == layer_paths(model)
    freeze(model, (0, 1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UsageError, match="--freeze 9 goes beyond the model's 2 layers"):
        freeze(model, (9,))


def test_weights_that_diverge_end_the_run(tmp_path):
    """Once weights are not finite, no further epoch is wasted, and the message says what to do."""
    workload = Toy(hyperparameters={"lr0": 1e30})
    with pytest.raises(MemplanError, match="not finite any more"):
        train(workload, toy_options(tmp_path, epochs=5))

    assert 5 > len(workload.data.calls)


def test_weight_decay_grows_with_the_images_a_step(tmp_path):
    """Steps of 8 images decay twice as much as the nominal 4, because gradients are summed."""
    workload = Toy(hyperparameters={"weight_decay": 0.1})
    seen = []
    workload.parameter_groups = lambda model, settings: (
        seen.append(settings.weight_decay) or Toy.parameter_groups(workload, model, settings)
    )
    prepare(workload, toy_options(tmp_path, batch=4, accumulate=2))

    assert [0.2] == seen


def test_a_precision_the_cpu_lacks_is_warned_of(tmp_path):
    """--precision amp-fp16 on a CPU trains in fp32 and says so."""
    setup = prepare(Toy(), toy_options(tmp_path, precision="amp-fp16"))

    assert ("--precision amp-fp16 needs a GPU; this CPU trains in fp32.",) == setup.warnings
    assert "fp32" == setup.step.spec.precision


@pytest.mark.parametrize(
    ("name", "message"),
    [("0,1", "names 2 devices, but 1 process"), ("tpu", "is no device"), ("99", "asks for GPU 99")],
)
def test_devices_that_cannot_be_used_are_refused(name, message):
    """Several devices, unknown names and absent GPUs are one-line errors."""
    with pytest.raises(BadInputError, match=message):
        find_device(name)


def test_missing_data_leaves_no_run_folder(tmp_path):
    """What can be checked is checked before anything is written."""
    options = toy_options(tmp_path)
    options.data.unlink()

    with pytest.raises(BadInputError, match=r"No data description at .*data.yaml"):
        train(Toy(), options)

    assert not (tmp_path / "runs").exists()


def test_weights_need_a_workload_that_reads_them(tmp_path):
    """A workload without load_weights refuses --weights, and zero epochs need --weights."""
    with pytest.raises(BadInputError, match=r"x\.pt cannot be used"):
        train(Toy(), toy_options(tmp_path, weights="x.pt"))
    with pytest.raises(BadInputError, match="--epochs 0 only evaluates"):
        train(Toy(), toy_options(tmp_path, epochs=0))


def test_the_factory_learns_the_data_s_classes(tmp_path):
    """The workload is made again with as many classes as the data has."""
    made = []

    class Counting(Toy):
        def __init__(self, num_classes):
            super().__init__()
            self.num_classes = num_classes

    def factory(*, image_size, num_classes=80):
        made.append((image_size, num_classes))
        return Counting(num_classes)

    prepare(factory, toy_options(tmp_path))

    assert [(8, 80), (8, 1)] == made


def test_losses_are_means_over_the_images(tmp_path):
    """The row's loss is the mean over all images whatever the micro-batches' sizes."""
    workload = Toy(hyperparameters={"lr0": 0.0})
    summary = train(workload, toy_options(tmp_path, batch=3, epochs=1))

    with torch.no_grad():
        model = Toy().build_model()
        model.load_state_dict(_last(summary).model)
        outputs = model.eval()(workload.data.images).squeeze(1)
    expected = float((outputs - workload.data.targets).square().mean())
    assert NUM_IMAGES == len(outputs)
    assert math.isclose(expected, _results(summary)["train/error"][0], rel_tol=1e-5)


def test_a_run_that_ends_within_its_warm_up_is_warned_of(tmp_path):
    """Six micro-batches are fewer than the least warm-up of 100; nothing is said without one."""
    for epochs_of_warmup, expected in ((3.0, 1), (0.0, 0)):
        warnings = []
        train(
            Toy(hyperparameters={"warmup_epochs": epochs_of_warmup}),
            toy_options(tmp_path),
            on_event=lambda name, facts, seen=warnings: (
                seen.append(facts["message"]) if name == "warning" else None
            ),
        )
        assert expected == len(warnings)
        assert all("Warm-up lasts 100 micro-batches and this run has 6" in w for w in warnings)
