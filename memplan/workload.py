"""What memplan asks of a training: a model, a batch, a loss, an optimizer, an evaluation.

A workload of one's own subclasses `Workload` (the first three methods are enough for `probe` and
`plan`) and is named on the command line as `package.module:factory`; a package registers its
models as a `memplan.family.Family`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memplan.spec import StepSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

# A batch is any mapping of names to tensors; the first dimension counts images.
Batch = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class CrowdedBatch:
    """A batch with more objects in its images than most have."""

    batch: Batch
    """Shapes as `Workload.make_batch` gives them, apart from the objects."""
    objects_per_image: int
    """Objects in each of its images, above the workload's own number."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An operator whose output size depends on values that no recording knows.

    Such as the positions where a mask over predictions holds: with no device there are no
    predictions, so the workload states how many there are.
    """

    operator: str
    """What chooses, such as `aten.nonzero`, `aten.masked_select` or `torchvision.nms`."""
    shape: tuple[int, ...]
    """Shape of what is chosen from: the mask, the scores of `nms`, the values of `unique`."""
    made_by: str
    """The operator that computed it, such as `aten.gt`; empty where that is not known."""
    module: str
    """Path of the running module; empty outside any, as in most losses."""
    section: str
    """Section of the life that runs, such as `micro_batch` or `validation`; see `memplan.tape`."""
    micro_batch_size: int
    """Images of the training batch; a validation batch may have more."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A value that the step asks of the device, and that no recording knows."""

    type: type[bool | int | float]
    """What the answer is to be."""
    made_by: str
    """The operator that computed it, such as `aten.lt`; empty where that is not known."""
    module: str
    """Path of the running module; empty outside any."""
    section: str
    """Section of the life that runs, such as `micro_batch` or `validation`."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the optimizer is built."""

    spec: StepSpec = field(default_factory=StepSpec)
    """How the step runs, which names the optimizer."""
    learning_rate: float = 0.01
    """Step size, > 0."""
    momentum: float = 0.937
    """SGD's momentum, or Adam's first beta; 0 disables SGD's momentum buffer."""
    weight_decay: float = 0.0005
    """L2 penalty on weights that are not of norm layers; 0 disables it."""

    @property
    def name(self) -> str:
        """`SGD`, `Adam`, `AdamW`, `RMSprop`, `Adagrad` or `LION`; a workload may know more."""
        return self.spec.optimizer

    @property
    def fused(self) -> bool:
        """Whether the kernels are fused; SGD, Adam and AdamW have such."""
        return self.spec.fused


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the user asked of the data pipeline; each workload refuses what it does not know."""

    path: Path
    """The data set's description, such as YOLO's `data.yaml`."""
    image_size: int = 640
    """Side of the square training images, pixels."""
    num_workers: int = 0
    """Loader processes; 0 loads in the training process."""
    seed: int = 0
    """Seeds shuffling and augmentation."""
    hyperparameters: Mapping[str, float] | None = None
    """Augmentation strengths by name; None takes the workload's defaults."""
    single_class: bool = False
    """Treat every object as class 0."""
    min_items: int = 0
    """Drop training images with fewer objects; 0 keeps all."""
    extra: Mapping[str, Any] | None = None
    """Further options of the workload's own."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the user asked of `memplan export`."""

    weights: Path
    """A checkpoint."""
    output: Path
    """The file to write; one that exists is replaced."""
    cfg: str | None = None
    """The configuration, or the path of a description; None asks the checkpoint."""
    blocks: str | None = None
    """A module of the user's whose classes that description names."""
    data: Path | None = None
    """A data set's description, for the names of the classes; None asks the checkpoint."""
    image_size: int = 640
    """Side of the square images, pixels."""
    format: str = "onnx"
    """`onnx`, `torchscript`, `openvino`, `engine` (TensorRT), `pt`, or `official`: a checkpoint
    that the official code loads."""
    half: bool = False
    """Store weights, and compute, in half precision."""
    dynamic_batch: bool = False
    """Take any number of images at once."""
    batch_size: int = 1
    """Images at once of a file that takes no other number, >= 1."""
    opset: int = 17
    """Of an ONNX file; TensorRT 8.6, OpenVINO 2023 and ONNX Runtime 1.13 read 17."""
    workspace_gib: float = 4.0
    """Memory that building a TensorRT engine may use, GiB, > 0."""
    keep_auxiliary: bool = False
    """Keep the auxiliary branch, where the format can, so that training can go on."""
    fuse: bool = True
    """Merge norms into convolutions."""
    nms: bool = False
    """Suppress inside the file, where its format can."""
    confidence: float = 0.25
    """The least score of a detection, with `nms`; 0 to 1."""
    iou: float = 0.45
    """Boxes of a class that overlap more are one detection, with `nms`; 0 to 1."""
    max_detections: int = 300
    """Kept of a class in an image, with `nms`."""


def dealt(num_images: int, micro_batch_size: int, rank: int, num_ranks: int) -> list[range]:
    """Return which of an epoch's images each batch of a process holds, by place in the order.

    Each round of `num_ranks * micro_batch_size` images is dealt evenly to the processes; in the
    last, smaller one a process may go without, and then has a batch less.

    Args:
        num_images: in the order, >= 0.
        micro_batch_size: images a batch, >= 1.
        rank: of the process, 0-based.
        num_ranks: processes, >= 1.
    """
    size = micro_batch_size * num_ranks
    batches = []
    for start in range(0, num_images, size):
        count = min(size, num_images - start)
        first, last = (start + count * part // num_ranks for part in (rank, rank + 1))
        batches.append(range(first, last))
    return [batch for batch in batches if batch]


class Evaluator(Protocol):
    """Turns predictions into metrics."""

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one validation batch's predictions (what `Workload.predict` returned)."""

    def compute(self) -> dict[str, float]:
        """Return metrics by name; the key `fitness` ranks checkpoints, higher is better."""


class TrainingData(Protocol):
    """A checked, indexed data set, ready to be read."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""

    @property
    def class_names(self) -> Sequence[str]:
        """Their names, by class index."""

    @property
    def num_training_images(self) -> int:
        """Images that training sees in an epoch."""

    @property
    def num_validation_images(self) -> int:
        """Images that validation sees."""

    @property
    def objects_per_image(self) -> np.ndarray[Any, Any]:
        """Objects in each training image, int64 `[num_training_images]`."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was found wrong and passed over, one line each."""

    def training_batches(
        self,
        *,
        micro_batch_size: int,
        epoch: int,
        augment_fully: bool,
        first_image: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Iterable[Batch]:
        """Return one epoch's batches as CPU tensors, in the order fixed by seed and epoch.

        An image's content may depend on seed, epoch and the image, not on where reading began: a
        resumed epoch goes on in its middle, and a step that found no memory is read again.

        Args:
            micro_batch_size: images a batch, >= 1; the last batch may be smaller.
            epoch: 0-based; the same epoch always gives the same order.
            augment_fully: False in the last epochs, where mosaics are closed.
            first_image: how many images of the epoch's order to leave out, >= 0; not read at all.
            rank: which of the processes that train together asks; 0-based.
            num_ranks: how many they are. Of each `num_ranks * micro_batch_size` images in the
                order, a process gets the `rank`-th part: `dealt` says which.
        """

    def num_batches(self, micro_batch_size: int) -> int:
        """Return how many batches `training_batches` yields in an epoch."""

    def validation_batches(self, *, micro_batch_size: int) -> Iterable[Batch]:
        """Return the validation set once, unaugmented, in a fixed order."""

    def evaluator(self) -> Evaluator:
        """Return a fresh evaluator for the validation set."""


@runtime_checkable
class ResumableData(Protocol):
    """Data whose order also depends on what training came to, as with weights by class."""

    def state(self) -> dict[str, Any]:
        """Return what coming epochs depend on besides seed and epoch, as plain values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""


@runtime_checkable
class RecognisedData(Protocol):
    """Data that can be told from other data, so that a resumed run notices a change."""

    def fingerprint(self) -> Mapping[str, str]:
        """Return a short text for each part, such as `training labels`, by its name."""


@runtime_checkable
class KnowsHostMemory(Protocol):
    """Data that knows what reading them takes of host memory, beside the training process."""

    def host_bytes(self, micro_batch_size: int) -> Mapping[str, int]:
        """Return bytes by what takes them, in words, on one device."""


@runtime_checkable
class LeavesOut(Protocol):
    """Data whose images may vanish or break while a run goes on, and are left out from then on."""

    @property
    def unreadable(self) -> Mapping[str, int]:
        """How often an image was left out, by a sentence that names it and says why."""


@runtime_checkable
class PicturedData(Protocol):
    """Data that can be drawn; optional, and called once, before training."""

    def write_pictures(self, folder: Path, *, micro_batch_size: int, augment_fully: bool) -> None:
        """Write pictures of the data, such as the first training batches, into a folder.

        No random state that training draws from may change.

        Args:
            folder: exists.
            micro_batch_size: images a batch, >= 1.
            augment_fully: as `training_batches` is asked in the first epoch.
        """


@runtime_checkable
class DetailedEvaluator(Protocol):
    """An evaluator that can tell more than `compute`; optional, and asked once, after training."""

    def write_details(self, folder: Path, *, draws: bool) -> str:
        """Write tables and, where `draws`, pictures of what was evaluated; return text to print.

        Args:
            folder: the run's, which exists; pictures belong below its `plots/`.
            draws: False where the user asked for no plots.
        """


class Workload(abc.ABC):
    """A training that memplan can record and plan; what more it may offer is a capability.

    `memplan.capabilities` names them: a workload with an `open_data` method can be trained, one
    with `make_validation_batch` validates, and so on.

    Tensors are made on the CPU; memplan moves the model and each batch to the device. Shapes may
    depend on the batch's shapes. Where they also depend on values (`nonzero`, a mask as an index,
    `unique`, `nms`, `.item()`), the workload says so with `states_sizes`: values that follow from
    the batch and from constants are then computed, up to 262,144 elements a tensor, so that
    `counts.max()` of real targets is exact; what follows from predictions is stated by
    `num_chosen` and `answer`:

        class Mine(Workload):
            states_sizes = True
            objects_per_image = 20

            def num_chosen(self, choice: Choice) -> int | None:
                if choice.operator == "torchvision.nms":
                    return min(1000, choice.shape[0])  # what the detector keeps at most
                return super().num_chosen(choice)  # ten predictions an object

            def answer(self, question: Question) -> float | None:
                return 0 if question.made_by == "aten.isnan" else 1
    """

    name: str
    """The name a user types, such as `yolov9-s`."""
    image_size: int
    """Side of the square input, pixels."""
    nominal_batch_size: int = 64
    """Images an optimizer step is meant to see; sets accumulation when nothing else is asked."""
    clip_gradient_norm: float | None = None
    """Largest total gradient norm, > 0; None does not clip."""
    num_classes: int = 0
    """Classes of the model's output; 0 where the notion does not apply."""
    stride: int = 1
    """What the image size must be a multiple of, pixels."""
    loss_names: Sequence[str] = ()
    """Names of the parts that `compute_loss` returns, in order."""
    objects_per_image: int = 0
    """Objects in each image of `make_batch`; 0 where the notion does not apply."""
    keeps_average: bool = False
    """Whether a moving average of the weights (EMA) is kept on the device."""
    states_sizes: bool = False
    """Whether the step has sizes that depend on values, and `num_chosen` states them."""
    positives_per_object: int = 10
    """Predictions that the loss matches with an object, where `num_chosen` is not overridden."""
    validation_batch_size: int | None = None
    """Images validated at once; None leaves it to `make_validation_batch`."""
    assigner_parts: int = 0
    """Parts of a batch whose objects the loss matches with predictions one after another, which
    takes less memory where images are crowded; 0 where the workload has no such choice."""
    offers_fused: bool = True
    """Whether its optimizer may be fused; False where its own `make_optimizer` knows no such."""
    data_options: frozenset[str] = frozenset()
    """What `open_data` knows of `memplan.acceptance.DATA_OPTIONS`: `cache`, `rect`,
    `image_weights`, `single_class`, `min_items`; the others are refused by the option's name."""
    deterministic: bool = False
    """Whether training runs under `torch.use_deterministic_algorithms(True)`."""
    cublas_workspace_config: str | None = None
    """What training sets CUBLAS_WORKSPACE_CONFIG to, such as `:4096:8`; None leaves it alone."""

    @abc.abstractmethod
    def build_model(self) -> torch.nn.Module:
        """Return the model with fresh weights, float32, in training mode."""

    @abc.abstractmethod
    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return a batch with the shapes and dtypes of real data; values do not matter."""

    @abc.abstractmethod
    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scalar to differentiate and the detached parts to log, a 1-D tensor.

        Gradients of micro-batches are summed, so the scalar should grow with the images: a sum
        over them, not a mean. With a mean, accumulation and backing off change the step.
        """

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch as the model takes it, computed on the device (such as uint8 / 255)."""
        return batch

    def parameter_groups(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> list[dict[str, Any]]:
        """Return the groups that the optimizer is made of, as PyTorch takes them.

        A group may hold further arguments of the optimizer, such as its own `weight_decay`. The
        default is one group of all parameters, undecayed.
        """
        del settings
        return [{"params": list(model.parameters())}]

    def recompute_blocks(self, model: torch.nn.Module) -> list[str]:
        """Return paths of modules that may be recomputed in backward, in execution order.

        The default names the children of the largest containers: every direct child that has
        parameters of its own, entering `Sequential` and `ModuleList`.
        """
        paths: list[str] = []
        for name, child in model.named_children():
            if type(child).__name__ in {"Sequential", "ModuleList"}:
                paths += [f"{name}.{path}" for path in self.recompute_blocks(child)]
            elif any(True for _ in child.parameters()):
                paths.append(name)
        return paths

    def num_chosen(self, choice: Choice) -> int | None:
        """Return how many a choice keeps; asked only where `states_sizes` holds.

        The default takes the mask's first dimension for the images where it has their number, and
        the mask as one image's otherwise; every object is matched with `positives_per_object`
        predictions, and further dimensions are kept whole. None refuses to record.
        """
        shape = choice.shape
        if not shape or not self.objects_per_image:
            return None
        positives = self.objects_per_image * self.positives_per_object
        if len(shape) > 1 and shape[0] == choice.micro_batch_size:
            return min(shape[0] * positives, math.prod(shape[:2])) * math.prod(shape[2:])
        return min(positives, shape[0]) * math.prod(shape[1:])

    def answer(self, question: Question) -> float | None:
        """Return what a value asked of the device is; asked only where `states_sizes` holds.

        The default says yes, or one: there is a positive, there are several boxes at a place.
        None refuses to record.
        """
        del question
        return 1

    def predict(self, model: torch.nn.Module, batch: Batch) -> Any:
        """Return predictions for a prepared validation batch; called without gradients."""
        return model(batch["images"])

    def evaluate(self, model: torch.nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None]:
        """Return predictions, as `predict` does, and the parts of the loss, 1-D.

        The parts are named as those of `compute_loss`; None, as by default, where validation has
        no loss. Called as `predict` is, and recorded: what the loss takes counts.
        """
        return self.predict(model, batch), None
