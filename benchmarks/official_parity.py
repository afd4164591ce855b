"""memplan beside the official code, from a checkout of it, in everything that decides a result.

    python -m benchmarks.official_parity CHECKOUT [--python PYTHON]

The official code runs in a process of its own (`official_side.py`); what it needs besides PyTorch
(its requirements.txt) must be there, or in the environment of the `--python` that is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml
from memplan_models import yolov9
from memplan_models.detection_metrics.evaluation import DetectionEvaluator
from memplan_models.detection_metrics.nms import non_max_suppression
from memplan_models.yolo_data.hyperparameters import read_hyperparameters
from memplan_models.yolo_data.loader import open_yolo_data
from memplan_models.yolo_data.sample import sample_images, write_sample
from memplan_models.yolov9 import official_file
from memplan_models.yolov9.convert import drop_auxiliary
from memplan_models.yolov9.network import DetectionModel
from memplan_models.yolov9.workload import YoloV9

from benchmarks.common import publish
from benchmarks.eval_speed import CLASSES as EVALUATED_CLASSES
from benchmarks.eval_speed import SIZE as EVALUATED_SIZE
from benchmarks.eval_speed import batches as made_up_batches
from benchmarks.official_statistics import NAMES, statistics_of
from memplan.step.average import ModelAverage
from memplan.step.optimizers import make_optimizer
from memplan.training import TrainOptions, train
from memplan.workload import DataOptions, ExportOptions, OptimizerSettings

SIDE_FILE = Path(__file__).parent / "official_side.py"
_LIMIT_SECONDS = 3_000
# The official code loads whole pickled models, which PyTorch 2.6 and later refuse unless told.
_ENVIRONMENT = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    "WANDB_MODE": "disabled",
    "YOLOv5_AUTOINSTALL": "false",
}
Row = tuple[str, str, str, str]

# 35 steps of the nominal batch, so that nothing is accumulated over the end of an epoch, where the
# official code forgets what memplan makes a step of.
STEPS_SIDE, STEPS_BATCH, STEPS_EPOCHS, STEPS_IMAGES = 64, 64, 7, 320
RATES_SIDE, RATES_BATCH, RATES_EPOCHS, RATES_IMAGES = 32, 4, 20, 28  # 140 batches, 100 warm up
SCHEDULES = {"linear": (), "cosine": ("--cos-lr",), "flat cosine": ("--flat-cos-lr",),
             "fixed": ("--fixed-lr",)}  # fmt: skip
DRAWS, REPEATS, AUGMENTED_SIDE, AUGMENTED_IMAGES = 200, 5, 192, 50
LOADED = ("yolov9-t", "yolov9-c", "yolov9-cf", "gelan-e", "yolov7-af")  # every block and head


@dataclass(frozen=True)
class Checkout:
    """Runs tasks of the official code."""

    path: Path
    python: str
    folder: Path
    """For what is given and found."""

    def run(self, task: str, **given: Any) -> dict[str, Any]:
        """Return what the official code does with what is given."""
        torch.save(given, self.folder / "given.pt")
        side = [str(SIDE_FILE), str(self.path), str(self.folder), task]
        done = subprocess.run(
            [self.python, "-W", "ignore", *side],
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
            env={**os.environ, **_ENVIRONMENT},
        )
        if done.returncode:
            end = done.stdout[-2000:] + done.stderr[-3000:]
            sys.exit(f"The official code failed at {task}:\n{end}")
        found: dict[str, Any] = torch.load(self.folder / f"{task}.pt", weights_only=True)
        return found


def _relative(found: Any, expected: Any) -> float:
    """Return the largest difference relative to the larger of the two, 0 where both are 0."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    size = np.maximum(np.maximum(np.abs(found), np.abs(expected)), 1e-12)
    return float((np.abs(found - expected) / size).max())


# Training


class _Watched(YoloV9):
    """YOLOv9 that remembers losses and rates; all else is memplan's own way to train."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.losses: list[list[float]] = []
        self.rates: list[list[float]] = []

    def evaluate(self, model: Any, batch: Any) -> Any:
        del model  # the evaluators are compared by themselves
        return [torch.zeros(0, 6) for _ in batch["images"]], None

    def compute_loss(self, model: Any, batch: Any) -> Any:
        total, parts = super().compute_loss(model, batch)
        self.losses.append(parts.tolist())
        return total, parts

    def make_optimizer(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.parameter_groups(model, settings), settings)
        optimizer.register_step_pre_hook(lambda one, *_: self.rates.append(self._rates(one)))
        return optimizer

    def _rates(self, optimizer: torch.optim.Optimizer) -> list[float]:
        groups = {group["kind"]: group for group in optimizer.param_groups}
        bias, weight = groups["bias"], groups["weight"]
        return [len(self.losses), bias["lr"], weight["lr"], bias["momentum"],
                weight["weight_decay"]]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training on both sides."""

    cfg: str
    data: Path
    side: int
    epochs: int
    batch: int
    schedule: str = "linear"


def _initial(case: Case, folder: Path) -> Path:
    """Write weights that both start from; the official trainer rounds its own to half."""
    torch.manual_seed(0)
    net = yolov9.build(case.cfg, 10).half().float().eval()
    path = folder / "initial.pt"
    names = tuple(map(str, range(10)))
    official_file.write(path, net, names, ExportOptions(weights=path, output=path))
    return path


def _loaded(case: Case) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the batches that memplan will train on, as the official loader hands them out."""
    data = open_yolo_data(DataOptions(path=case.data, image_size=case.side))
    epochs = []
    for epoch in range(case.epochs):
        read = data.training_batches(micro_batch_size=case.batch, epoch=epoch, augment_fully=True)
        epochs.append([(batch["images"], _rows(batch["targets"])) for batch in read])
    return epochs


def _rows(targets: torch.Tensor) -> torch.Tensor:
    """Return padded targets `[B, M, 5]` as rows `[n, 6]` that begin with the image."""
    images, places = torch.nonzero(targets[..., 0] >= 0, as_tuple=True)
    return torch.cat([images[:, None].float(), targets[images, places]], 1)


def _theirs(case: Case, official: Checkout, weights: Path, *, keeps_states: bool) -> dict[str, Any]:
    hyp, _ = read_hyperparameters(None)
    return official.run(
        "train", batches=_loaded(case), weights=str(weights), classes=10, hyp=dict(hyp),
        names={n: str(n) for n in range(10)}, epochs=case.epochs, batch=case.batch,
        side=case.side, options=list(SCHEDULES[case.schedule]), keeps_states=keeps_states,
        folder=str(official.folder / "run"),
    )  # fmt: skip


def _ours(case: Case, official: Checkout, weights: Path) -> _Watched:
    made: list[_Watched] = []

    def workload(**options: Any) -> _Watched:
        made.append(_Watched(case.cfg, **options))
        return made[-1]

    options = TrainOptions(
        data=case.data, cfg=case.cfg, image_size=case.side, batch=case.batch, epochs=case.epochs,
        workers=0, device="cpu", weights=weights, noval=True, nosave=True, noplots=True,
        project=official.folder / "runs", name=case.schedule.replace(" ", "-"),
        **{flag.strip("-").replace("-", "_"): True for flag in SCHEDULES[case.schedule]},
    )  # fmt: skip
    with (official.folder / "log.txt").open("w") as log:
        train(workload, options, stream=log)
    return max(made, key=lambda one: len(one.losses))


def training_rows(official: Checkout, data: Path) -> Iterator[Row]:
    """Yield the losses of 35 steps and the average of the weights after them."""
    case = Case("yolov9-t", data, STEPS_SIDE, STEPS_EPOCHS, STEPS_BATCH)
    weights = _initial(case, official.folder)
    theirs = _theirs(case, official, weights, keeps_states=True)
    states = theirs["states"]
    expected, count = np.array(theirs["losses"]), len(theirs["losses"])
    workload = YoloV9(case.cfg, num_classes=10, image_size=case.side)
    model = workload.build_model().train()
    model.load_state_dict(states[0])
    average = ModelAverage(model)
    found = []
    for number, (images, rows) in enumerate(batch for epoch in _loaded(case) for batch in epoch):
        batch = workload.prepare({"images": images, "targets": _padded(rows, len(images))})
        with torch.no_grad():
            found.append(workload.compute_loss(model, batch)[1].tolist())
        model.load_state_dict(states[number + 1])
        average.update()
    for column, name in enumerate(("box", "class", "dfl")):
        a, b = np.array(found)[:, column], expected[:, column]
        yield (
            f"{name} loss, steps 1 to {count}, each from the official weights",
            f"{a[0]:.6f} to {a[-1]:.6f}",
            f"{b[0]:.6f} to {b[-1]:.6f}",
            f"{_relative(a, b):.1e} relative, at most",
        )
    free = np.array(_ours(case, official, weights).losses)
    gaps = [_relative(free[step], expected[step]) for step in range(count)]
    yield (
        "the same, both trainers free: steps 1, 2, 5, 10",
        *(" ".join(f"{one[step].sum():.4f}" for step in (0, 1, 4, 9)) for one in (free, expected)),
        " ".join(f"{gaps[step]:.0e}" for step in (0, 1, 4, 9)) + " relative",
    )
    ours, last = average.model.state_dict(), theirs["average"]
    floating = [name for name, value in last.items() if value.dtype.is_floating_point]
    largest = max(_relative(ours[k].abs().max(), last[k].abs().max()) for k in floating)
    gap = max(float((ours[k] - last[k]).abs().max()) for k in floating)
    yield (
        f"average of the official weights (EMA) after {average.updates} steps",
        f"{sum(float(ours[k].double().abs().sum()) for k in floating):.6f} (sum)",
        f"{sum(float(last[k].double().abs().sum()) for k in floating):.6f} (sum)",
        f"{gap:.1e} at most of an entry; {largest:.1e} relative, of each tensor's largest",
    )


def _padded(rows: torch.Tensor, num_images: int) -> torch.Tensor:
    """Return rows `[n, 6]` as padded targets `[B, M, 5]`."""
    parts = [rows[rows[:, 0] == image, 1:] for image in range(num_images)]
    targets = torch.zeros(num_images, max(1, *map(len, parts)), 5)
    targets[..., 0] = -1
    for padded, part in zip(targets, parts, strict=True):
        padded[: len(part)] = part
    return targets


def schedule_rows(official: Checkout, data: Path) -> Iterator[Row]:
    """Yield rates, momentum and decay at the steps of the optimizer, by schedule."""
    for name in SCHEDULES:
        case = Case("yolov9-t", data, RATES_SIDE, RATES_EPOCHS, RATES_BATCH, name)
        weights = _initial(case, official.folder)
        ran = (
            _ours(case, official, weights).rates,
            _theirs(case, official, weights, keeps_states=False)["rates"],
        )
        ours, theirs = ({int(row[0]): row[1:] for row in rates} for rates in ran)
        shared = sorted(ours.keys() & theirs.keys())
        a, b = ([steps[batch] for batch in shared] for steps in (ours, theirs))
        yield (
            f"{name}: rates, momentum, decay at {len(shared)} steps of both",
            f"{a[-1][1]:.6g} at the last",
            f"{b[-1][1]:.6g} at the last",
            f"{_relative(a, b):.1e} relative, at most",
        )
    per_epoch = RATES_IMAGES // RATES_BATCH
    yield (
        f"steps, of {RATES_EPOCHS * per_epoch} batches; of them at the end of an epoch",
        *(f"{len(one)}; {sum(batch % per_epoch == 0 for batch in one)}" for one in (ours, theirs)),
        "memplan makes a step of what an epoch leaves",
    )


# Data


def augmentation_rows(official: Checkout, data: Path) -> Iterator[Row]:
    """Yield statistics of augmented images, each with the spread of its mean over repeats."""
    hyp, _ = read_hyperparameters(None)
    ours, theirs = [], []
    opened = [
        open_yolo_data(DataOptions(path=data, image_size=AUGMENTED_SIDE, seed=seed))
        for seed in range(REPEATS)
    ]
    for seed in range(REPEATS):
        rows = []
        for epoch in range(-(-DRAWS // opened[seed].num_training_images)):
            for batch in opened[seed].training_batches(
                micro_batch_size=8, epoch=epoch, augment_fully=True
            ):
                for pixels, targets in zip(batch["images"], batch["targets"], strict=True):
                    kept = targets[targets[:, 0] >= 0]
                    rows.append(statistics_of(pixels.numpy(), kept.numpy()))
        ours.append(np.nanmean(np.array(rows[:DRAWS]), 0))
        found = official.run(
            "augment", images=str(data.parent / f"train{AUGMENTED_IMAGES}.txt"),
            side=AUGMENTED_SIDE, hyp=dict(hyp),
            seed=seed, draws=DRAWS,
        )  # fmt: skip
        theirs.append(np.nanmean(found["rows"].numpy(), 0))
    a, b = np.array(ours), np.array(theirs)
    for column, name in enumerate(NAMES):
        one, other = a[:, column], b[:, column]
        error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / REPEATS)
        yield (
            f"augmentation: {name}",
            f"{one.mean():.4g} +- {one.std(ddof=1) / REPEATS**0.5:.2g}",
            f"{other.mean():.4g} +- {other.std(ddof=1) / REPEATS**0.5:.2g}",
            f"{(one.mean() - other.mean()) / error:+.1f} standard errors",
        )


# Evaluation


def evaluation_rows(official: Checkout) -> Iterator[Row]:
    """Yield the metrics of the same detections."""
    evaluator = DetectionEvaluator([str(label) for label in range(EVALUATED_CLASSES)])
    detections, labels = [], []
    for _, (found, batch) in zip(range(10), made_up_batches(), strict=False):
        evaluator.update(found, batch)
        for rows, padded in zip(found, batch["targets"], strict=True):
            targets = padded[padded[:, 0] >= 0]
            half = targets[:, 3:] / 2
            corners = torch.cat([targets[:, 1:3] - half, targets[:, 1:3] + half], 1)
            detections.append(rows)
            labels.append(torch.cat([targets[:, :1], corners * EVALUATED_SIZE], 1))
    ours = evaluator.compute()
    theirs = official.run(
        "evaluate", detections=detections, labels=labels, classes=EVALUATED_CLASSES
    )
    for name, value in theirs.items():
        yield (
            f"evaluator: {name} of {len(detections)} images",
            f"{ours[name]:.4f}",
            f"{value:.4f}",
            f"{ours[name] - value:+.4f}",
        )


def suppression_rows(official: Checkout) -> Iterator[Row]:
    """Yield what suppression leaves of the same predictions, as val.py and detect.py ask it."""
    generator = torch.Generator().manual_seed(0)
    centres = 40 + 560 * torch.rand(4, 2, 40, generator=generator)
    places = torch.randint(0, 40, (4, 1, 3000), generator=generator).expand(-1, 2, -1)
    boxes = torch.cat([
        centres.gather(2, places) + 4 * torch.randn(4, 2, 3000, generator=generator),
        40 + 20 * torch.rand(4, 2, 3000, generator=generator),
    ], 1)  # fmt: skip
    scores = torch.rand(4, 8, 3000, generator=generator) ** 6
    predictions = torch.cat([boxes, scores], 1)
    for script, multi, confidence, iou, most in (
        ("val.py", True, 0.001, 0.7, 300), ("detect.py", False, 0.25, 0.45, 1000),
    ):  # fmt: skip
        ours = non_max_suppression(
            predictions, confidence=confidence, iou=iou, max_detections=most, multi_label=multi
        )
        theirs = official.run(
            "suppress", predictions=predictions, confidence=confidence, iou=iou, most=most,
            multi_label=multi,
        )["kept"]  # fmt: skip
        shared = sum(
            int((torch.cdist(a, b, p=float("inf")).amin(1) < 1e-3).sum())
            for a, b in zip(ours, theirs, strict=True)
        )
        yield (
            f"suppression as {script} asks it, 4 images of 3,000 boxes",
            f"{sum(map(len, ours))} kept",
            f"{sum(map(len, theirs))} kept",
            f"{shared} the same",
        )


# Checkpoints


def checkpoint_rows(official: Checkout) -> Iterator[Row]:
    """Yield outputs of `memplan export --format official` files, read by the official loader."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    files, outputs = {}, {}
    for name in LOADED:
        path = official.folder / f"{name}.pt"
        net = _trained(name)
        official_file.write(path, net, ("a", "b"), ExportOptions(weights=path, output=path))
        with torch.no_grad():
            decoded = net(images)[0]
        files[name] = str(path)
        outputs[name] = decoded[-1] if isinstance(decoded, list) else decoded
    found = official.run("load", files=files, images=images)
    for name, expected in outputs.items():
        gaps = (found[name]["outputs"] - expected).abs().amax((1, 3))
        yield (
            f"official file of {name}, loaded there",
            f"{expected.shape[2]} boxes",
            f"{found[name]['outputs'].shape[3]} boxes",
            f"{float(gaps[0].max()):.1e} at most (fused: {float(gaps[1].max()):.1e})",
        )


def script_rows(official: Checkout, data: Path) -> Iterator[Row]:
    """Yield what the official scripts and memplan's commands write with the same file."""
    torch.manual_seed(0)
    net = _calibrated(drop_auxiliary(yolov9.build("yolov9-t", 10)).net)
    weights = official.folder / "found.pt"
    names = tuple(map(str, range(10)))
    official_file.write(weights, net, names, ExportOptions(weights=weights, output=weights))
    common = ["--weights", str(weights), "--img", "96", "--device", "cpu", "--save-txt",
              "--save-conf", "--project", str(official.folder / "scripts"),
              "--conf-thres", "0.3"]  # fmt: skip
    images = str(data.parent / "images" / "val")
    for file, command, options in (
        ("detect.py", "predict", ["--source", images, "--nosave"]),
        ("val.py", "val", ["--data", str(data), "--batch-size", "8", "--workers", "0"]),
    ):
        official.run("script", arguments=[file, *common, *options, "--name", f"official-{command}"])
        subprocess.run(
            [sys.executable, "-m", "memplan", command, *common, *options, "--name", command],
            check=True, capture_output=True, timeout=_LIMIT_SECONDS,
        )  # fmt: skip
        ours, theirs = (
            _written(official.folder / "scripts" / name / "labels")
            for name in (command, f"official-{command}")
        )
        gaps = [
            np.abs(ours[name][:, None] - theirs[name][None]).max(-1).min(1)
            for name in ours.keys() & theirs.keys()
        ]
        every = np.concatenate(gaps)
        near = f"{(every < _PIXEL).mean():.2%} within a pixel; median {np.median(every):.1e}"
        yield (
            f"{file} and memplan {command} with an official file of ours, --save-txt",
            f"{sum(map(len, ours.values()))} rows in {len(ours)} files",
            f"{sum(map(len, theirs.values()))} rows in {len(theirs)} files",
            near,
        )


_PIXEL = 1 / 320  # of the sample set's images


def _calibrated(net: DetectionModel) -> DetectionModel:
    """Return the network with the norms of real images, and scores that differ by image."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean
    with torch.no_grad():
        net.train()(sample_images(16, 96))
        for name, value in net.state_dict().items():
            if ".cv3." in name and name.endswith(".2.bias"):
                value.fill_(-1.5)
            elif ".cv3." in name and name.endswith(".2.weight"):
                value.mul_(0.7)
    return net.eval()


def _written(folder: Path) -> dict[str, Any]:
    """Return the rows of label files, sorted, by name."""
    return {
        path.name: np.array(sorted(np.loadtxt(path, ndmin=2).tolist()))
        for path in sorted(folder.glob("*.txt"))
    }


def _trained(name: str) -> DetectionModel:
    """Return a network whose norms are unlike fresh ones."""
    net = yolov9.build(name, 2).eval()
    for key, tensor in net.state_dict().items():
        if key.endswith("running_var") or (tensor.dim() == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            tensor.uniform_(-0.5, 0.5)
    return net


def _data(sample: Path, count: int) -> Path:
    """Return a description of the sample set's first training images alone."""
    folder = sample.parent
    files = sorted((folder / "images" / "train").iterdir())[:count]
    listed = folder / f"train{count}.txt"
    listed.write_text("".join(f"{path.resolve()}\n" for path in files))
    content = {**yaml.safe_load(sample.read_text()), "train": listed.name, "path": str(folder)}
    content.pop("train_defaults", None)
    path = folder / f"first{count}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


PARTS: dict[str, Callable[[Checkout, Callable[[int], Path]], Iterator[Row]]] = {
    "training": lambda official, data: training_rows(official, data(STEPS_IMAGES)),
    "schedule": lambda official, data: schedule_rows(official, data(RATES_IMAGES)),
    "augmentation": lambda official, data: augmentation_rows(official, data(AUGMENTED_IMAGES)),
    "evaluation": lambda official, _: evaluation_rows(official),
    "suppression": lambda official, _: suppression_rows(official),
    "checkpoints": lambda official, _: checkpoint_rows(official),
    "scripts": lambda official, data: script_rows(official, data(RATES_IMAGES)),
}


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--python", default=sys.executable, help="What runs the official code.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Print, keep nothing.")
def main(path: Path, python: str, only: tuple[str, ...]) -> None:
    """Compare, print the table and keep it."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        official = Checkout(path.resolve(), python, Path(name))
        data = partial(_data, write_sample(Path(name) / "digits"))
        for part, compare in PARTS.items():
            if not only or part in only:
                click.echo(f"Comparing {part}", err=True)
                for row in compare(official, data):
                    click.echo("   ".join(row), err=True)
                    rows.append(row)
    if only:
        return
    publish(
        "official_parity",
        "memplan beside the official code",
        ("Compared", "memplan", "official", "difference"),
        rows,
        remarks(),
        "official_parity CHECKOUT",
    )


def remarks() -> list[str]:
    """Return what a reader must know."""
    return [
        f"Losses, weights, average: the official train_dual.py and memplan train, yolov9-t, "
        f"{STEPS_SIDE} px, batch {STEPS_BATCH}, {STEPS_EPOCHS} epochs of {STEPS_IMAGES} images, "
        "float32 on the CPU, from the same weights and on the same batches, which memplan's loader "
        "made. Free, differences of the last digit grow from step to step while the biases warm "
        "up at a rate of 0.1.",
        f"Rates: both trainers for {RATES_EPOCHS} epochs of {RATES_IMAGES} images, batch "
        f"{RATES_BATCH}, past the warm-up of 100 batches. At the end of an epoch the official "
        "trainer forgets the gradients it has accumulated since its last step; memplan makes a "
        "step of them.",
        f"Augmentation: each code's own loader on the same {AUGMENTED_IMAGES} images at "
        f"{AUGMENTED_SIDE} px with scratch-high.yaml, {REPEATS} times {DRAWS} images; +- is the "
        "standard error of the mean. Beyond 3 standard errors would be a difference.",
        "Evaluator: detections made up; precision and recall have one definition, mAP is "
        "pycocotools' here and the official script's own there.",
        "Scripts: a network of random weights whose norms are those of real images, 96 px, scores "
        "from 0.3. detect.py rounds boxes to whole pixels of the image.",
        "Checkpoints: written by memplan without the official code; `fused` is what the official "
        "loader makes of norms by default. Weights are fresh, norms random.",
    ]


if __name__ == "__main__":
    main()
