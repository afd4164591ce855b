"""What a training run is asked to do, by the official recipe's names, checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from memplan.bounds import check_number, shown
from memplan.errors import BadInputError, UsageError
from memplan.files import converted
from memplan.files.structures import NotStructuredError, flattened
from memplan.spec import LEVER, StepSpec

_MOST_LAYERS = 100_000

# Official options that are accepted by name and refused, each with its reason.
REFUSED = {
    "--evolve": "memplan searches memory settings, not hyperparameters",
    "--mask-ratio": "masks have a quarter of the image's size, which is --mask-ratio 4",
    "--no-overlap": "where objects overlap, a pixel of a mask is the smaller one's",
}
_NO_SERVICE = "memplan reports to no tracking service"
ACCEPTED = {
    "--noautoanchor": "these heads have no anchors",
    "--local_rank": "torchrun tells each process its place itself",
    "--bucket": "memplan uploads nothing",
    "--no_wandb": _NO_SERVICE,
    "--entity": _NO_SERVICE,
    "--upload_dataset": "memplan uploads nothing",
    "--bbox_interval": _NO_SERVICE,
    "--artifact_alias": _NO_SERVICE,
    "--save-json": "memplan val --save-json writes COCO's result file of any checkpoint",
}
"""Official options, of this or of related recipes, that change no result here, and why."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the names and meanings are the official recipe's unless said otherwise.

    Raises:
        UsageError: a value is out of its range; the message names the option as typed.
    """

    data: Path
    """The data set's `data.yaml`."""
    cfg: str = ""
    """The configuration as the user named it; kept in the records, read by the command line."""
    blocks: str | None = None
    """A module whose classes the configuration names (memplan's own); typed anew at each resume."""
    image_size: int = 640
    """Side of the square training images, pixels."""
    batch: int = 16
    """Images in a micro-batch on all devices together, >= 1; the devices divide it evenly."""
    batch_per_device: int | None = None
    """Images in a micro-batch on each device (memplan's own); takes the place of `batch`."""
    val_batch: int | None = None
    """Images validated at once (memplan's own); None leaves it to the workload, twice `batch`."""
    epochs: int = 100
    """Passes over the training images; 0 only evaluates."""
    workers: int = 8
    """Most loader processes; 0 loads in the training process."""
    device: str = ""
    """`cpu`, a GPU's index such as `0`, or one for each process, such as `0,1`; empty takes the
    first GPU, or under torchrun each process its own, else the CPU."""
    weights: Path | None = None
    """A checkpoint to start from; None starts from fresh weights."""
    hyp: str | None = None
    """A hyperparameter file, or the name of a shipped one; None takes the workload's defaults."""
    hyperparameters: Mapping[str, float] | None = None
    """Values by name that replace those of `hyp`."""
    official_gains: bool = False
    """Weigh the parts of the loss as the official one does, whatever `hyp` says (memplan's own)."""
    project: Path = Path("runs/train")
    """The folder that run folders are made in."""
    name: str = "exp"
    """The run folder's name; a number is added when it exists."""
    exist_ok: bool = False
    """Use the run folder `name` even if it exists, replacing its records."""
    close_mosaic: int = 0
    """Augment lightly (no mosaic, no mixup) in this many last epochs, also after a resume."""
    min_items: int = 0
    """Leave out training images with fewer objects; 0 keeps all."""
    cos_lr: bool = False
    """Let the learning rate follow a cosine instead of a line."""
    flat_cos_lr: bool = False
    """Keep the learning rate for half the epochs, then follow a cosine."""
    fixed_lr: bool = False
    """Keep the learning rate."""
    label_smoothing: float = 0.0
    """No effect, as in the official recipe, which computes it and never uses it; warned of."""
    patience: int = 100
    """Stop after this many epochs without a better fitness; 0 never stops early."""
    freeze: tuple[int, ...] = (0,)
    """One number freezes that many first layers, several freeze those layers; (0,) none."""
    save_period: int = -1
    """Also keep `epochN.pt` every this many epochs; below 1 keeps none."""
    seed: int = 0
    """Seeds weights, shuffling and augmentation, >= 0."""
    single_cls: bool = False
    """Treat every object as one class."""
    multi_scale: bool = False
    """Resize each training batch to a side drawn from 0.5 to 1.5 times `image_size`."""
    rect: bool = False
    """Batch images of like aspect ratio in rectangles, in one order, without mosaics."""
    image_weights: bool = False
    """Draw each epoch's images by their classes: rare and badly detected ones more often."""
    quad: bool = False
    """Make one image of twice the side from four; the micro-batch still counts the four."""
    cache: str = ""
    """`ram` or `disk` keeps decoded images of both splits, `val` validation's in host memory."""
    resume: Path | None = None
    """A run folder or `last.pt` to continue; its own options replace all but device, workers."""
    noval: bool = False
    """Evaluate after the last epoch only."""
    nosave: bool = False
    """Save after the last epoch only."""
    save_every: float = 10.0
    """Minutes between saves of `last.pt` within an epoch (memplan's own); 0 saves none there."""
    noplots: bool = False
    """Draw nothing, neither before training nor after it; the loop itself draws nothing."""
    tensorboard: bool = False
    """Also write the records as TensorBoard events, below the run folder (memplan's own)."""
    accumulate: int | None = None
    """Micro-batches a step (memplan's own); None follows from the effective batch."""
    effective_batch: int | None = None
    """Images a step (memplan's own); None takes the workload's nominal batch, 64 for YOLOv9."""
    spec: StepSpec = field(default_factory=StepSpec)
    """How a step runs. A CPU trains in fp32 whatever the precision is."""
    given: tuple[str, ...] = ()
    """Levers of `spec` that the user set; the others a plan may choose."""
    rank_timeout: float = 10.0
    """Minutes that one of several processes may keep the others waiting (memplan's own)."""
    guard: bool = True
    """Survive running out of memory by halving the micro-batch (memplan's own)."""

    def __post_init__(self) -> None:
        """Check every value that can be checked alone."""
        _check_numbers(self)
        _check_one_schedule(self)
        if self.accumulate is not None and self.effective_batch is not None:
            raise UsageError(
                f"--accumulate {self.accumulate} and --effective-batch {self.effective_batch} "
                "both set the images a step. Give one of them."
            )
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing {self.label_smoothing} is not in 0 to 1.")
        _check_layers(self.freeze)
        if self.cache not in {"", "ram", "disk", "val"}:
            raise UsageError(f"--cache {self.cache} is not offered. Use ram, disk or val.")
        if self.rect and self.image_weights:
            raise UsageError(
                "--rect fixes the order of images and --image-weights draws it. Give one of them."
            )
        if self.quad and (at_once := self.batch_per_device or self.batch) % 4:
            raise UsageError(
                f"--batch {at_once} is no multiple of 4, but --quad makes one image of four. "
                f"Nearest: {max(4, round(at_once / 4) * 4)}."
            )
        if not is_plain_name(self.name):
            raise UsageError(f"--name {self.name!r} is not a folder's name. Use --project PATH.")

    def augments_fully(self, epoch: int) -> bool:
        """Return whether an epoch, 0-based, has mosaics.

        Source: the official train_dual.py, which closes them on reaching `epochs - close_mosaic`;
        a number above `epochs` is never reached.
        """
        return self.close_mosaic > self.epochs or epoch < self.epochs - self.close_mosaic

    def micro_batch_size(self, num_ranks: int) -> int:
        """Return the images in a micro-batch on each of as many devices.

        Raises:
            UsageError: `batch` cannot be divided evenly, or not into what `quad` needs.
        """
        if self.batch_per_device is not None:
            return self.batch_per_device
        each, rest = divmod(self.batch, num_ranks)
        if rest or not each:
            raise UsageError(
                f"--batch {self.batch} is the images at once on all devices together, as in the "
                f"official recipe, and {num_ranks} devices cannot divide it evenly. Nearest: "
                f"{max(1, round(self.batch / num_ranks)) * num_ranks}, or give --batch-per-device."
            )
        if self.quad and each % 4:
            raise UsageError(
                f"--batch {self.batch} is {each} on each of {num_ranks} devices, but --quad makes "
                f"one image of four. Nearest: {max(1, round(each / 4)) * 4 * num_ranks}."
            )
        return each

    @property
    def schedule(self) -> str:
        """The learning-rate schedule's name, one of `schedule.SCHEDULES`."""
        if self.flat_cos_lr:
            return "flat-cos"
        if self.fixed_lr:
            return "fixed"
        return "cos" if self.cos_lr else "linear"

    def as_record(self) -> dict[str, Any]:
        """Return the options as plain values, for YAML and checkpoints."""
        values: dict[str, Any] = flattened(self)
        # Found from any folder that the run is resumed in.
        values["data"] = self.data.absolute()
        if self.cfg.endswith((".yaml", ".yml")) and Path(self.cfg).is_file():
            values["cfg"] = str(Path(self.cfg).absolute())
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = str(value)
        return values


def is_plain_name(name: str) -> bool:
    """Return whether a text names a folder within another: no path, no `..`, and not too long."""
    is_name = Path(name).name == name and name not in {"", ".", ".."}
    return is_name and "\0" not in name and len(name.encode(errors="replace")) <= _LONGEST_NAME


_LONGEST_NAME = 200  # bytes; Linux takes 255, and a number may be added


def options_from_record(values: Mapping[str, Any]) -> TrainOptions:
    """Return the options that `as_record` described; names of later versions are left out.

    Raises:
        BadInputError: a value has the wrong type or range.
    """
    # Earlier versions wrote None for what was not given.
    values = {k: one for k, one in values.items() if one is not None or k not in LEVER}
    if "batch_per_device" not in values:
        # Of a version in which `batch` was the images on each device.
        values = {**values, "batch_per_device": values.get("batch")}
    try:
        return converted(values, TrainOptions, surplus=True)
    except NotStructuredError as error:
        raise BadInputError(f"The recorded options cannot be used: {error}.") from None


def check_image_size(image_size: int, stride: int) -> None:
    """Check that the stride divides the image size.

    Raises:
        UsageError: it does not; the nearest size is named.
    """
    if image_size % stride:
        nearest = max(stride, round(image_size / stride) * stride)
        raise UsageError(
            f"--img {image_size} is no multiple of the stride {stride}. Nearest: {nearest}."
        )


def _check_layers(layers: tuple[int, ...]) -> None:
    text = " ".join(shown(layer) for layer in layers[:20])
    if any(layer < 0 for layer in layers):
        raise UsageError(f"--freeze {text} has a layer below 0.")
    if any(layer > _MOST_LAYERS for layer in layers):
        raise UsageError(f"--freeze {text} has a layer above {_MOST_LAYERS}.")


def _check_numbers(options: TrainOptions) -> None:
    for one in fields(options):
        option = _CALLED.get(one.name, f"--{one.name.replace('_', '-')}")
        check_number(option, getattr(options, one.name))


_CALLED = {"image_size": "--img"}


def _check_one_schedule(options: TrainOptions) -> None:
    flags = {
        "--cos-lr": options.cos_lr,
        "--flat-cos-lr": options.flat_cos_lr,
        "--fixed-lr": options.fixed_lr,
    }
    given = [flag for flag, chosen in flags.items() if chosen]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other. Give one of them.")
