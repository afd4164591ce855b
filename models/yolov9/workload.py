"""YOLOv9 and GELAN detectors as a workload: what memplan records, plans and trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError, UsageError
from memplan.family import Family
from memplan.files import Source
from memplan.workload import (
    Batch,
    CrowdedBatch,
    DataOptions,
    ExportOptions,
    OptimizerSettings,
    TrainingData,
    Workload,
)

from . import build, loss, names
from .arguments import (
    MASK_RATIO,
    STRIDE,
    check_arguments,
    find_cfg,
    has_masks,
    is_file_name,
    merged,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import numpy as np
    import torch

    from memplan.inference import Detections, DetectOptions, ValidateOptions, Validation

    from .losses import DetectionLoss
    from .network import DetectionModel

_MODELS = __name__.split(".", maxsplit=1)[0]
_FEWEST_IN_CROWD = 20  # so that the line through objects has a length
_VALIDATION_FACTOR = 2  # the official recipe validates at twice the training batch


class YoloV9(Workload):
    """A detector trained with the official recipe.

    Args:
        name: a configuration such as `yolov9-s`, or what to call the one in `cfg`.
        num_classes: classes of the head, >= 1.
        image_size: side of the square training images, a multiple of 32 pixels.
        objects_per_image: boxes in each image of `make_batch`, >= 0.
        cfg: a configuration or the path of a description file; None takes `name`. A path that
            does not exist means the shipped configuration of that name.
        blocks: modules of the user's, as `own_blocks.load_blocks` takes them, whose classes a
            description file names.
        hyp: a hyperparameter file or the name of a shipped one; None takes scratch-high.
        hyperparameters: values by name that replace those of `hyp`.
        official_gains: whether the parts of the loss weigh as in the official one, whatever `hyp`
            says.
        multi_scale: whether each training batch is resized to a side drawn anew; recorded at the
            largest.
        quad: whether four training images make one of twice the side, and the loss counts four
            times, as the official recipe's `--quad`.
        validation_batch_size: images validated at once, >= 1; None takes twice the micro-batch.
        assigner_parts: parts of a batch, >= 1, whose boxes are assigned to anchors one after
            another: the same result in less memory.

    Raises:
        UnknownNameError: no such configuration or hyperparameter.
        UsageError: an argument is out of its range.
    """

    clip_gradient_norm = 10.0
    keeps_average = True
    data_options = frozenset({"cache", "rect", "image_weights", "single_class", "min_items"})
    nominal_batch_size = 64
    stride = STRIDE
    loss_names: tuple[str, ...] = ("box_loss", "cls_loss", "dfl_loss")
    mask_ratio = 0
    """Pixels of an image a pixel of its masks; 0 without masks."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 80,
        image_size: int = 640,
        objects_per_image: int = 20,
        cfg: str | Path | None = None,
        blocks: str | None = None,
        hyp: str | Path | None = None,
        hyperparameters: Mapping[str, float] | None = None,
        official_gains: bool = False,
        quad: bool = False,
        multi_scale: bool = False,
        validation_batch_size: int | None = None,
        assigner_parts: int = 1,
    ) -> None:
        from ..yolo_data.hyperparameters import read_hyperparameters

        check_arguments(num_classes, image_size, objects_per_image)
        if validation_batch_size is not None and validation_batch_size < 1:
            raise UsageError(f"--val-batch {validation_batch_size} is below 1.")
        if assigner_parts < 1:
            raise UsageError(f"--assigner-parts {assigner_parts} is below 1.")
        self.cfg = find_cfg(str(cfg or name))
        self.blocks = blocks
        self.name = Path(name).stem if is_file_name(name) else name
        self.num_classes = num_classes
        self.image_size = image_size
        self.objects_per_image = objects_per_image
        self.quad = quad
        self.multi_scale = multi_scale
        self.validation_batch_size = validation_batch_size
        self.assigner_parts = assigner_parts
        values, self._hyp_warnings = read_hyperparameters(hyp, official_gains=official_gains)
        self.hyperparameters = merged(values, hyperparameters or {})

    def build_model(self) -> DetectionModel:
        """Return the network with fresh weights."""
        return build(self.cfg, self.num_classes, self.blocks)

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` uint8, targets `[B, M, 5]` and what the loader adds."""
        return self._training_batch(micro_batch_size, self.objects_per_image)

    def make_crowded_batch(self, micro_batch_size: int) -> CrowdedBatch:
        """Return a batch with twice the objects: the assigner pads images to the fullest."""
        objects = max(2 * self.objects_per_image, _FEWEST_IN_CROWD)
        batch = self._training_batch(micro_batch_size, objects)
        return CrowdedBatch(batch=batch, objects_per_image=objects)

    def _training_batch(self, micro_batch_size: int, objects: int) -> Batch:
        if not self.quad:
            return self._batch(micro_batch_size, self.image_size, objects)
        num_quads = math.ceil(micro_batch_size / 4)
        return self._batch(num_quads, 2 * self.image_size, 4 * objects)

    def make_validation_batch(self, micro_batch_size: int) -> Batch:
        """Return `validation_batch_size` images, else twice the training batch, in full size.

        The validation size is larger than training's, such as 672 for 640.
        """
        num_images = self.validation_batch_size or micro_batch_size * _VALIDATION_FACTOR
        return self._batch(num_images, self.validation_size, self.objects_per_image)

    @property
    def validation_size(self) -> int:
        """Side of the square validation images, pixels."""
        from ..yolo_data.loader import validation_size

        return validation_size(self.image_size, self.stride)

    def _batch(self, num_images: int, side: int, objects: int) -> Batch:
        from .examples import example_batch

        return example_batch(num_images, side, objects, self.mask_ratio)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with float32 images in 0-1."""
        import torch

        images = batch["images"].to(torch.float32).div_(255)
        return {**batch, "images": images}

    def draw_side(self, generator: np.random.Generator) -> int | None:
        """Return a side in whole strides from [s / 2, 3 s / 2 + stride), as the recipe draws it."""
        if not self.multi_scale:
            return None
        size = self.image_size
        drawn = generator.integers(size // 2, size * 3 // 2 + self.stride)
        return max(int(drawn) // self.stride, 1) * self.stride

    def resize(self, batch: Batch, side: int | None = None) -> Batch:
        """Return the batch resized from the image size to `side`, bilinear; None: the largest.

        Boxes are relative to the image, so they stay.

        Source: the official recipe's --multi-scale; sides are rounded up to whole strides. It
        scales the longer side of a batch to `side`; quads and rectangles keep their proportion.
        """
        from torch.nn.functional import interpolate

        if not self.multi_scale:
            return batch
        images, stride = batch["images"], self.stride
        largest = (self.image_size * 3 // 2 + stride - 1) // stride * stride
        factor = (side or largest) / max(images.shape[2:])
        shape = [math.ceil(length * factor / stride) * stride for length in images.shape[2:]]
        if list(images.shape[2:]) == shape:
            return batch
        resized = interpolate(images, size=shape, mode="bilinear", align_corners=False)
        return {**batch, "images": resized}

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, scaled by the batch size, and its parts (box, cls, dfl) `[3]`."""
        criterion = self._criterion(model)
        total, parts = criterion(model(batch["images"]), batch["targets"])
        # The loss grows with the images, of which there are a quarter as many.
        return (4 * total if self.quad else total), parts

    def _criterion(self, model: torch.nn.Module) -> DetectionLoss:
        values = self.hyperparameters
        return loss(
            _as_network(model),
            box=values["box"],
            cls=values["cls"],
            dfl=values["dfl"],
            cls_pw=values["cls_pw"],
            fl_gamma=values["fl_gamma"],
            assigner_parts=self.assigner_parts,
        )

    def parameter_groups(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> list[dict[str, Any]]:
        """Return the official groups: biases, weights, norm weights.

        Each group carries its `kind` (`bias`, `weight`, `norm`); only `weight` is decayed.
        """
        from .groups import parameter_groups

        # The official recipe gives AdamW a third state tensor.
        more = {"amsgrad": True} if settings.name == "AdamW" else {}
        return [{**group, **more} for group in parameter_groups(model, settings)]

    def draw_object_counts(
        self,
        counts: np.ndarray[Any, Any],
        num_draws: int,
        generator: np.random.Generator,
    ) -> np.ndarray[Any, Any]:
        """Return objects in drawn training images: mosaics of four, some mixed with another.

        No object is taken to be cut away, so a drawn image is rather fuller than a real one;
        copies that copy-paste may add are in `counts` already.
        """
        import numpy as np

        values = self.hyperparameters
        four = generator.choice(counts, (num_draws, 4))
        other = generator.choice(counts, (num_draws, 4)).sum(axis=1)
        mixes = generator.random(num_draws) < values["mixup"]
        mosaic = four.sum(axis=1) + np.where(mixes, other, 0)
        return np.where(generator.random(num_draws) < values["mosaic"], mosaic, four[:, 0])

    def recompute_blocks(self, model: torch.nn.Module) -> list[str]:
        """Return the paths of the layers worth recomputing, in execution order."""
        from .network import recompute_blocks

        return recompute_blocks(_as_network(model))

    def make_lean(self, model: torch.nn.Module) -> None:
        """Make convolution blocks keep their convolution's output and no normalised map.

        Raises:
            UsageError: no block can, because of its batch norm or activation.
        """
        from .network import make_lean

        if not make_lean(_as_network(model)):
            raise UsageError(
                f"--lean: no block of {self.name} can be lean: that takes plain batch norm and "
                "SiLU or ReLU. Leave it out, or use --recompute."
            )

    def take_recipe(self, tensor: torch.Tensor) -> object | None:
        """Take from a map how it is made again, and return it."""
        from .rebuild import take_recipe

        return take_recipe(tensor)

    def give_recipe(self, tensor: torch.Tensor, recipe: object) -> None:
        """Let a map know again how it is made."""
        from .rebuild import Recipe, with_recipe

        assert isinstance(recipe, Recipe)
        with_recipe(tensor, recipe)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the main branch's boxes in pixels and probabilities, `[B, 4 + nc, A]`, float32.

        Layers that only the auxiliary branch needs are not run. Maps are decoded in float32:
        half precision has steps of half a pixel at 640.
        """
        from .network import decoded, main_maps

        network = _as_network(model)
        return decoded(network, main_maps(network, batch["images"]))

    def evaluate(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictions, as `predict` does, and the main branch's loss (box, cls, dfl) `[3]`.

        The auxiliary branch has no part in it: it is not run.
        """
        from dataclasses import replace

        from .network import decoded, main_maps

        network = _as_network(model)
        maps = main_maps(network, batch["images"])
        predictions = decoded(network, maps)
        _, parts = replace(self._criterion(model), branches=1)(maps, batch["targets"])
        return predictions, parts

    def build_inference(self) -> torch.nn.Module:
        """Return the main branch, norms merged into convolutions, as `val` and `predict` run it."""
        from .convert import drop_auxiliary, fuse
        from .export_files import Deployed

        return Deployed(fuse(drop_auxiliary(self.build_model()).net)).eval()

    def make_inference_batch(self, batch_size: int, mode: str) -> torch.Tensor:
        """Return square images `[B, 3, S, S]` uint8, the largest rectangles that there are."""
        import torch

        side = self.validation_size if mode == "val" else self.image_size
        return torch.zeros(batch_size, 3, side, side, dtype=torch.uint8)

    def infer(self, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return raw predictions `[B, 4 + nc, A]` float32, before suppression."""
        dtype = next(model.parameters()).dtype
        found: torch.Tensor = model(images.float().div_(255).to(dtype))
        return found

    def has_data(self, path: Path) -> bool:
        """Return whether a data set's description is there, or ships under that name."""
        from ..yolo_data.dataset import find_description

        return find_description(path).exists()

    def open_data(self, options: DataOptions) -> TrainingData:
        """Return the checked YOLO data set.

        Raises:
            BadInputError: the data cannot be used.
        """
        from dataclasses import replace

        from ..yolo_data.loader import open_yolo_data

        extra = {
            "validation_size": self.validation_size,
            "stride": self.stride,
            "quad": self.quad,
            "mask_ratio": self.mask_ratio,
            **(options.extra or {}),
        }
        strengths = options.hyperparameters or self.hyperparameters
        chosen = replace(options, extra=extra, hyperparameters=strengths)
        data = open_yolo_data(chosen)
        data.warnings += self._hyp_warnings
        return data

    def write_sample(self, directory: Path, *, force: bool = False) -> Path:
        """Write the sample data set and return the path of its `data.yaml`; see `write_sample`.

        With masks, labels are polygons.

        Raises:
            BadInputError: the directory holds files and `force` is not given, or cannot be written.
        """
        from ..yolo_data.sample import write_sample

        return write_sample(directory, force=force, outlines=bool(self.mask_ratio))

    def export(self, options: ExportOptions) -> list[str]:
        """Write the converted, fused network of a checkpoint and return what was done.

        Raises:
            BadInputError: the weights cannot be used, or the file would disagree with them.
            UsageError: an option is out of its range.
        """
        from .export import export

        return export(options)

    def validate(self, options: ValidateOptions) -> Generator[str, None, Validation]:
        """Evaluate a weights file on a split; see `validate.validate`.

        Raises:
            BadInputError: weights or data cannot be used.
        """
        from .validate import validate

        return validate(options)

    def detect(self, options: DetectOptions) -> Generator[str, None, list[Detections]]:
        """Detect in images and videos with a weights file; see `predict.detect`.

        Raises:
            BadInputError: weights or source cannot be used.
        """
        from .predict import detect

        return detect(options)

    def load_weights(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill the model from a checkpoint and return one sentence on what matched.

        Raises:
            BadInputError: the file cannot be read, is refused as unsafe, or nothing in it fits.
        """
        from .fitting import FEW_ENTRIES, advice
        from .weights import load_weights

        report = load_weights(_as_network(model), path)
        if report.fraction >= FEW_ENTRIES:
            return str(report)
        return (
            f"{path} fills only {len(report.matched)} of {report.total} entries: training starts "
            f"nearly from fresh weights. {advice(path)}"
        )

    def load_whole(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill every entry of the model from a checkpoint and return one sentence on it.

        Raises:
            BadInputError: the file cannot be read, is refused as unsafe, or leaves entries.
        """
        from .fitting import advice
        from .weights import load_weights

        report = load_weights(_as_network(model), path)
        if report.fraction < 1:
            raise BadInputError(
                f"{path} fills only {len(report.matched)} of {report.total} entries of "
                f"{self.name}, so evaluating it says nothing. {report.mismatches()} "
                f"{advice(path)}"
            )
        return str(report)


class YoloV9Segmentation(YoloV9):
    """A detector with masks, trained with the official recipe.

    Its arguments are those of `YoloV9`, but for `quad`: the official recipe has no masks for it.
    """

    loss_names = ("box_loss", "seg_loss", "cls_loss", "dfl_loss")
    mask_ratio = MASK_RATIO

    def __init__(self, name: str, *, quad: bool = False, **arguments: Any) -> None:
        if quad:
            raise UsageError(f"--quad: {name} learns masks, which four images in one have none of.")
        super().__init__(name, **arguments)

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, scaled by the batch size, and its parts (box, mask, cls, dfl) `[4]`."""
        from .segmentation import loss_of

        return loss_of(self._criterion(model), model(batch["images"]), batch)

    def predict(  # type: ignore[override]
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictions and prototypes of the main branch; see `segmentation.predict`."""
        from .segmentation import predict

        return predict(_as_network(model), batch["images"])

    def evaluate(  # type: ignore[override]
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return predictions, as `predict` does, and the main branch's loss, four parts."""
        from .segmentation import evaluate

        return evaluate(_as_network(model), self._criterion(model), batch)


class YoloFamily(Family):
    """YOLOv9 and GELAN: the configurations that ship, and descriptions in their format."""

    # What processes that record or load data have from their start.
    imported_when_used = (
        f"{__package__}.network",
        f"{__package__}.losses",
        f"{__package__}.segmentation",
        f"{_MODELS}.yolo_data.loader",
    )

    def cfg_of_weights(self, path: Path) -> str | None:
        """Return the configuration that a weights file fills; None where there is none.

        Raises:
            BadInputError: the file cannot be read, or holds no weights.
        """
        from .fitting import configuration_of

        return configuration_of(path)

    def names(self) -> list[str]:
        """Return the configurations that ship with memplan."""
        return names()

    def reads(self, path: Path) -> bool:
        """Return whether a file lists layers as the official repository's descriptions do."""
        content = Source(path=path, what="a model description").yaml()
        return isinstance(content, dict) and not {"backbone", "head"}.isdisjoint(content)

    def made_by(self, name: str) -> type[YoloV9]:
        """Return the class of every configuration's workload; others take the same arguments."""
        del name
        return YoloV9

    def make(self, name: str, **arguments: Any) -> YoloV9:
        """Return the workload of a configuration, or of a description's file.

        Raises:
            UnknownNameError: no such configuration; the nearest is suggested.
            BadInputError: the file cannot be read.
            UsageError: an argument is out of its range.
        """
        kind = YoloV9Segmentation if has_masks(str(arguments.get("cfg") or name)) else YoloV9
        return kind(name, **arguments)


FAMILY = YoloFamily()


def _as_network(model: torch.nn.Module) -> DetectionModel:
    from .network import DetectionModel

    assert isinstance(model, DetectionModel)
    return model
