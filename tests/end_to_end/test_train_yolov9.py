"""A YOLOv9 training run on real files: records, resume, weights, the guard."""

import os
import signal
import subprocess
import sys
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from memplan_models.yolov9.workload import YoloV9

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.step.optimizers import optimizer_of
from memplan.training import TrainOptions, open_training, train
from memplan.training.checkpoint import load_checkpoint
from memplan.workload import OptimizerSettings

FACTORY = partial(YoloV9, "yolov9-t")


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory):
    """Return a data.yaml of 6 training and 2 validation images with one square each."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 255, (64, 64, 3), np.uint8)
            x, y = rng.integers(16, 48, 2)
            image[y - 10 : y + 10, x - 10 : x + 10] = 255
            cv2.imwrite(str(root / f"images/{split}/{number}.jpg"), image)
            row = f"{number % 3} {x / 64} {y / 64} {20 / 64} {20 / 64}\n"
            (root / f"labels/{split}/{number}.txt").write_text(row)
    description = {"path": ".", "train": "images/train", "val": "images/val", "names": list("abc")}
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


def _options(data, tmp_path, **changes):
    values = {
        "data": data,
        "image_size": 64,
        "batch": 2,
        "epochs": 2,
        "workers": 0,
        "device": "cpu",
        "effective_batch": 4,
        "project": tmp_path,
        "name": "squares",
        "hyp": "scratch-low.yaml",
    }
    return TrainOptions(**(values | changes))


def _stop_after_first_epoch(name, facts):
    if name == "saved" and facts["epoch"] == 1:
        raise KeyboardInterrupt


@pytest.fixture(name="straight", scope="module")
def _straight(data, tmp_path_factory):
    """Return the summary of two epochs without a stop."""
    return train(FACTORY, _options(data, tmp_path_factory.mktemp("straight")))


def test_a_run_records_losses_and_metrics_by_name(straight):
    """Each epoch's row has the three losses, mAP and the rates."""
    table = pd.read_csv(straight.run_folder / "results.csv")

    assert [1, 2] == table["epoch"].tolist()
    losses = [f"{part}/{kind}_loss" for part in ("train", "val") for kind in ("box", "cls", "dfl")]
    metrics = [f"metrics/{name}" for name in ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")]
    assert {"epoch", *losses, *metrics, "x/lr0", "x/lr1", "x/lr2"} <= set(table)
    assert table[losses].gt(0).all(axis=None)


def test_resuming_equals_never_having_stopped(straight, data, tmp_path):
    """One epoch, a stop and one more give the weights of two epochs, bit for bit."""
    with pytest.raises(KeyboardInterrupt):
        train(FACTORY, _options(data, tmp_path), on_event=_stop_after_first_epoch)
    folder = tmp_path / "squares"
    train(FACTORY, TrainOptions(data=data, resume=folder, device="cpu", workers=0))

    expected = load_checkpoint(straight.run_folder / "weights/last.pt")
    actual = load_checkpoint(folder / "weights/last.pt")
    for slot in ("model", "ema"):
        for name, tensor in getattr(expected, slot).items():
            assert torch.equal(tensor, getattr(actual, slot)[name]), name


_KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from memplan.training import TrainOptions, train
from memplan_models.yolov9.workload import YoloV9

def die(name, facts):
    if name == "saved":
        os.kill(os.getpid(), signal.SIGKILL)

options = TrainOptions(
    data=Path(sys.argv[1]), project=Path(sys.argv[2]), name="squares", image_size=64, batch=2,
    epochs=2, workers=0, device="cpu", effective_batch=4, hyp="scratch-low.yaml",
)
train(partial(YoloV9, "yolov9-t"), options, on_event=die)
"""


def test_a_killed_run_resumes_to_the_same_weights(straight, data, tmp_path):
    """After SIGKILL a new process goes on from the last save and ends where it would have."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", _KILLED, str(data), str(tmp_path)]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert -signal.SIGKILL == killed.returncode, killed.stderr.decode()
    folder = tmp_path / "squares"
    train(FACTORY, TrainOptions(data=data, resume=folder, device="cpu", workers=0))

    expected = load_checkpoint(straight.run_folder / "weights/last.pt").model
    actual = load_checkpoint(folder / "weights/last.pt").model
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


def test_a_checkpoint_is_read_as_weights_and_evaluated(straight, data, tmp_path):
    """--epochs 0 --weights best.pt gives the metrics that its run ended with."""
    path = straight.run_folder / "weights/best.pt"
    events = {}
    summary = train(
        FACTORY,
        _options(data, tmp_path, epochs=0, weights=path),
        on_event=events.setdefault,
    )

    # Its weights are in half precision.
    assert straight.best_metrics == pytest.approx(summary.metrics, rel=0.02, abs=0.005)
    assert "Loaded 1772 of 1772 entries from 'model'." in events["weights_loaded"]["message"]
    assert path.stat().st_size < 0.3 * path.with_name("last.pt").stat().st_size


class _Cramped(YoloV9):
    """Refuses more than one image at once in training."""

    def compute_loss(self, model, batch):
        if len(batch["images"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().compute_loss(model, batch)


def test_running_out_of_memory_halves_the_micro_batch(data, tmp_path):
    """The run goes on with one image at once and four a step, and every image is trained on."""
    workload, opened = open_training(
        lambda **arguments: _Cramped("yolov9-t", **arguments), _options(data, tmp_path)
    )
    summary = train(workload, _options(data, tmp_path, epochs=1), data=opened)

    assert (1, 4, 1) == (summary.micro_batch_size, summary.accumulation_steps, summary.back_offs)


def test_the_network_gets_the_classes_of_the_data(data, tmp_path):
    """Three names in data.yaml make a head of three classes; single-class makes one."""
    workload, opened = open_training(FACTORY, _options(data, tmp_path))
    single, _ = open_training(FACTORY, _options(data, tmp_path, single_cls=True))

    assert 3 == workload.num_classes == opened.num_classes
    assert 1 == single.num_classes


def test_a_batch_to_record_looks_like_a_real_one(data, tmp_path):
    """Names, dtypes and shapes are the loader's, in training and in validation."""
    workload, opened = open_training(FACTORY, _options(data, tmp_path))
    [real, *_] = opened.training_batches(micro_batch_size=2, epoch=0, augment_fully=True)
    [seen, *_] = opened.validation_batches(micro_batch_size=4)
    validation = workload.make_validation_batch(1)

    for batch, made in ((real, workload.make_batch(2)), (seen, validation)):
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            name: tensor.dtype for name, tensor in made.items()
        }
        assert batch["images"].shape == made["images"].shape
        for name in set(batch) - {"targets"}:
            assert batch[name].shape == made[name].shape, name


@pytest.mark.parametrize("name", ["yolov9-t", "gelan-t", "yolov9-cf"])
def test_predictions_are_the_main_branch_s(name):
    """Leaving out the auxiliary branch's layers changes no number of the main one."""
    torch.manual_seed(0)
    workload = YoloV9(name, image_size=64, num_classes=3)
    model = workload.build_model().eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        decoded = model(images)[0]
        expected = decoded[-1] if isinstance(decoded, list) else decoded

        assert torch.equal(expected, workload.predict(model, {"images": images}))


def test_the_loss_holds_under_autocast():
    """In bfloat16 autocast the loss is finite, float32, and within 10 % of full precision."""
    torch.manual_seed(0)
    workload = YoloV9("yolov9-t", image_size=64, num_classes=3)
    model = workload.build_model()
    batch = workload.make_batch(2)
    batch["images"] = torch.randint(0, 255, batch["images"].shape, dtype=torch.uint8)
    batch = workload.prepare(batch)
    expected, _ = workload.compute_loss(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = workload.compute_loss(model, batch)

    assert torch.float32 == loss.dtype == parts.dtype
    torch.testing.assert_close(expected, loss, rtol=0.1, atol=0)


def test_parameters_fall_into_the_official_groups():
    """Biases, decayed weights and norm weights of yolov9-t: 303, 305 and 291 tensors."""
    workload = YoloV9("yolov9-t")
    optimizer = optimizer_of(workload, workload.build_model(), OptimizerSettings())

    assert [("bias", 303, 0.0), ("weight", 305, 0.0005), ("norm", 291, 0.0)] == [
        (group["kind"], len(group["params"]), group["weight_decay"])
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "yolov9-tiny"}, UnknownNameError, "Did you mean 'yolov9-t'"),
        ({"name": "yolov9-t", "image_size": 650}, UsageError, "Nearest: 640."),
        ({"name": "yolov9-t", "num_classes": 0}, UsageError, "num_classes 0 is below 1"),
        ({"name": "yolov9-t", "hyperparameters": {"mosaik": 1}}, UnknownNameError, "'mosaic'"),
        ({"name": "yolov9-t", "hyp": "none.yaml"}, BadInputError, "No hyperparameter file"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments, error, message):
    """Each is a one-line error that names the value and the nearest valid one."""
    with pytest.raises(error, match=message) as caught:
        YoloV9(**arguments)

    assert "\n" not in str(caught.value)
