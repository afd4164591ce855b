"""What a workload may offer besides the core that `memplan.workload.Workload` asks for.

A workload has a capability by having its members; `isinstance` tells. Subclassing the protocol is
optional, and lets a type checker compare the methods.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memplan.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch

    from memplan.inference import Detections, DetectOptions, ValidateOptions, Validation
    from memplan.workload import (
        Batch,
        CrowdedBatch,
        DataOptions,
        ExportOptions,
        OptimizerSettings,
        TrainingData,
        Workload,
    )


@runtime_checkable
class MakesOptimizer(Protocol):
    """Has an optimizer of its own, instead of memplan's over `Workload.parameter_groups`."""

    @abstractmethod
    def make_optimizer(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        """Return the optimizer over all parameters of a model.

        Raises:
            UnknownNameError: the workload does not know the optimizer.
        """


@runtime_checkable
class Validates(Protocol):
    """Validates during training, which counts in the memory that is predicted."""

    @abstractmethod
    def make_validation_batch(self, micro_batch_size: int) -> Batch | None:
        """Return the batch that validation uses, None if there is none.

        `micro_batch_size` is training's; a workload that validates at twice that says so here, and
        goes by `Workload.validation_batch_size` where that is set.
        """


@runtime_checkable
class Crowds(Protocol):
    """Takes more memory where images hold more objects."""

    @abstractmethod
    def make_crowded_batch(self, micro_batch_size: int) -> CrowdedBatch | None:
        """Return a batch with more objects an image than `make_batch`'s; None for no such.

        Memory at any number of objects is the line through the two batches, so it should be asked
        for only where sizes grow with them.
        """


@runtime_checkable
class DrawsObjects(Protocol):
    """Reads data that puts several images together, so that a training image has more objects."""

    @abstractmethod
    def draw_object_counts(
        self, counts: np.ndarray[Any, Any], num_draws: int, generator: np.random.Generator
    ) -> np.ndarray[Any, Any]:
        """Return the objects in training images drawn at random, int64 `[num_draws]`.

        Args:
            counts: objects in each image of the data set, int64 `[images]`, at least one.
            num_draws: how many to draw.
            generator: where chance comes from.
        """


@runtime_checkable
class Resizes(Protocol):
    """May train at sides drawn anew for each batch; memory is planned for the largest."""

    @abstractmethod
    def draw_side(self, generator: np.random.Generator) -> int | None:
        """Return the side that a training batch is resized to; None keeps sizes."""

    @abstractmethod
    def resize(self, batch: Batch, side: int | None = None) -> Batch:
        """Return a prepared training batch at another size, computed on the device.

        Args:
            batch: as `Workload.prepare` returns it.
            side: one that `draw_side` gave; None means the largest it may give.
        """


@runtime_checkable
class MultiScale(Resizes, Protocol):
    """Resizes where an argument `multi_scale` of its factory asks it."""

    multi_scale: bool


@runtime_checkable
class SavesItself(Protocol):
    """Copies for a checkpoint on the device; memplan's own trainer copies to the host."""

    @abstractmethod
    def checkpoint(self, model: torch.nn.Module, average: torch.nn.Module | None) -> Any:
        """Return what a checkpoint takes from the device; what it allocates there counts.

        Args:
            model: the trained model.
            average: its moving average; None where none is kept.
        """


@runtime_checkable
class Tuned(Protocol):
    """Has numbers by name that a hyperparameter file changes."""

    hyperparameters: Mapping[str, Any]


@runtime_checkable
class Noted(Protocol):
    """Says what a reader of predictions must know of the workload itself."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Return a sentence each."""


@runtime_checkable
class KnowsData(Protocol):
    """Knows descriptions of data sets by other names than their paths, such as `coco.yaml`."""

    @abstractmethod
    def has_data(self, path: Path) -> bool:
        """Return whether a path or name is of a description that can be read."""


@runtime_checkable
class Described(Protocol):
    """Is made from a configuration that `--cfg` names."""

    cfg: str
    """What a user types after `--cfg`."""


@runtime_checkable
class ReadsData(Protocol):
    """Reads data sets, so that it can be trained."""

    @abstractmethod
    def open_data(self, options: DataOptions) -> TrainingData:
        """Return the checked data set.

        Raises:
            BadInputError: the data cannot be used.
        """


@runtime_checkable
class ReadsWeights(Protocol):
    """Starts from weights (`--weights`)."""

    @abstractmethod
    def load_weights(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill the model from a weights file and return one sentence on what matched.

        Raises:
            BadInputError: the file cannot be used.
        """


@runtime_checkable
class Exports(Protocol):
    """Writes networks for deployment (`memplan export`)."""

    @abstractmethod
    def export(self, options: ExportOptions) -> Sequence[str]:
        """Write a checkpoint's network and return what was done, a line each.

        The file must be whole or not there, and must have been compared with the network.

        Raises:
            BadInputError: the checkpoint cannot be used.
        """


@runtime_checkable
class RunsTrained(Protocol):
    """Evaluates a weights file, and detects with it (`memplan val`, `memplan predict`)."""

    @abstractmethod
    def validate(self, options: ValidateOptions) -> Generator[str, None, Validation]:
        """Evaluate a split of a data set, write the details, and yield lines to print.

        The generator returns the scores.

        Raises:
            BadInputError: weights or data cannot be used.
            UsageError: an option is out of its range.
        """

    @abstractmethod
    def detect(self, options: DetectOptions) -> Generator[str, None, list[Detections]]:
        """Detect in images and videos, write what was found, and yield a line for each.

        The generator returns what was found.

        Raises:
            BadInputError: weights or source cannot be used.
            UsageError: an option is out of its range.
        """


@runtime_checkable
class Infers(Protocol):
    """Runs trained networks in another form than it trains them (`memplan probe --mode`)."""

    @abstractmethod
    def build_inference(self) -> torch.nn.Module:
        """Return the network as `memplan val` and `memplan predict` run it."""

    @abstractmethod
    def make_inference_batch(self, batch_size: int, mode: str) -> torch.Tensor:
        """Return images on the CPU, as they come from disk: the largest of `val` or `predict`."""

    @abstractmethod
    def infer(self, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the predictions of images on the device.

        Args:
            model: what `build_inference` gave, in float32 or float16.
            images: what `make_inference_batch` gave.
        """


@runtime_checkable
class LoadsWhole(Protocol):
    """Loads weights for evaluation, which few entries of a network make worthless."""

    @abstractmethod
    def load_whole(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill every entry of the model from a weights file and return one sentence on it.

        Raises:
            BadInputError: the file cannot be used, or an entry of the model stays as it was.
        """


@runtime_checkable
class KnowsWeights(Protocol):
    """A family that knows which of its configurations a weights file is of."""

    @abstractmethod
    def cfg_of_weights(self, path: Path) -> str | None:
        """Return the configuration's name; None where the file is of none.

        Raises:
            BadInputError: the file cannot be read, or holds no weights.
        """


def validation_batch(workload: Workload, micro_batch_size: int) -> Batch | None:
    """Return the batch that validation during training uses, None if there is none."""
    if not isinstance(workload, Validates):
        return None
    return workload.make_validation_batch(micro_batch_size)


def object_counts(
    workload: Workload,
    counts: np.ndarray[Any, Any],
    num_draws: int,
    generator: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """Return the objects in drawn training images; images as they are by default."""
    if isinstance(workload, DrawsObjects):
        return workload.draw_object_counts(counts, num_draws, generator)
    return generator.choice(counts, num_draws)


def hyperparameters(workload: Workload) -> dict[str, Any]:
    """Return a workload's own hyperparameters by name; none where it has none."""
    return dict(workload.hyperparameters) if isinstance(workload, Tuned) else {}


def reader_of_data(workload: Workload, path: Path) -> ReadsData:
    """Return the workload, known to read data sets.

    Raises:
        BadInputError: it reads none.
    """
    if isinstance(workload, ReadsData):
        return workload
    raise BadInputError(
        f"--data {path}: workload {workload.name!r} reads no data sets. Give the workload an "
        "open_data method, or use a yolov9 workload."
    )


def reader_of_weights(workload: Workload, path: str | Path) -> ReadsWeights:
    """Return the workload, known to read weights.

    Raises:
        BadInputError: it reads none.
    """
    if isinstance(workload, ReadsWeights):
        return workload
    raise BadInputError(
        f"--weights {path} cannot be used: workload {workload.name!r} reads no weights. "
        "Give it a load_weights method, or leave --weights away."
    )


def exporter(workload: Workload, weights: Path) -> Exports:
    """Return the workload, known to export.

    Raises:
        BadInputError: it exports nothing.
    """
    if isinstance(workload, Exports):
        return workload
    raise BadInputError(
        f"Workload {workload.name!r} exports nothing, so {weights} stays what it is. "
        "Give the workload an export method, or use a yolov9 workload."
    )
