"""YOLOv9 and GELAN detectors as a workload: what memplan records, plans and trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import UnknownNameError, UsageError
from memplan.workload import (
    Batch,
    CrowdedBatch,
    DataOptions,
    OptimizerSettings,
    TrainingData,
    Workload,
)

from . import build, loss, names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch

    from .network import DetectionModel

STRIDE = 32  # pixels a cell of the coarsest level, of every shipped configuration
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
        hyp: a hyperparameter file or the name of a shipped one; None takes scratch-high.
        hyperparameters: values by name that replace those of `hyp`.

    Raises:
        UnknownNameError: no such configuration or hyperparameter.
        UsageError: an argument is out of its range.
    """

    clip_gradient_norm = 10.0
    keeps_average = True
    nominal_batch_size = 64
    stride = STRIDE
    loss_names = ("box_loss", "cls_loss", "dfl_loss")

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 80,
        image_size: int = 640,
        objects_per_image: int = 20,
        cfg: str | Path | None = None,
        hyp: str | Path | None = None,
        hyperparameters: Mapping[str, float] | None = None,
    ) -> None:
        from .hyperparameters import load_hyperparameters

        _check_arguments(num_classes, image_size, objects_per_image)
        self.cfg = _find_cfg(str(cfg or name))
        self.name = Path(name).stem if _is_file_name(name) else name
        self.num_classes = num_classes
        self.image_size = image_size
        self.objects_per_image = objects_per_image
        self.hyperparameters = _merged(load_hyperparameters(hyp), hyperparameters or {})

    def build_model(self) -> DetectionModel:
        """Return the network with fresh weights."""
        return build(self.cfg, self.num_classes)

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` uint8, targets `[B, M, 5]` and what the loader adds."""
        return self._batch(micro_batch_size, self.image_size, self.objects_per_image)

    def make_crowded_batch(self, micro_batch_size: int) -> CrowdedBatch:
        """Return a batch with twice the objects: the assigner pads images to the fullest."""
        objects = max(2 * self.objects_per_image, _FEWEST_IN_CROWD)
        batch = self._batch(micro_batch_size, self.image_size, objects)
        return CrowdedBatch(batch=batch, objects_per_image=objects)

    def make_validation_batch(self, micro_batch_size: int) -> Batch:
        """Return twice the images at the validation size, such as 672 for 640."""
        num_images = micro_batch_size * _VALIDATION_FACTOR
        return self._batch(num_images, self.validation_size, self.objects_per_image)

    @property
    def validation_size(self) -> int:
        """Side of the square validation images, pixels."""
        from .loader import validation_size

        return validation_size(self.image_size, self.stride)

    def _batch(self, num_images: int, side: int, objects: int) -> Batch:
        import torch

        targets = torch.full((num_images, max(1, objects), 5), 0.5)
        targets[..., 0] = 0 if objects else -1
        return {
            "images": torch.zeros(num_images, 3, side, side, dtype=torch.uint8),
            "targets": targets,
            "image_ids": torch.arange(num_images),
            "original_shapes": torch.full((num_images, 2), side),
            "letterbox": torch.ones(num_images, 4, dtype=torch.float64),
        }

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with float32 images in 0-1."""
        import torch

        images = batch["images"].to(torch.float32).div_(255)
        return {**batch, "images": images}

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, scaled by the batch size, and its parts (box, cls, dfl) `[3]`."""
        values = self.hyperparameters
        criterion = loss(
            _as_network(model),
            box=values["box"],
            cls=values["cls"],
            dfl=values["dfl"],
            cls_pw=values["cls_pw"],
            fl_gamma=values["fl_gamma"],
        )
        return criterion(model(batch["images"]), batch["targets"])

    def make_optimizer(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        """Return the optimizer over the official groups: biases, weights, norm weights.

        Each group carries its `kind` (`bias`, `weight`, `norm`); only `weight` is decayed.

        Raises:
            UnknownNameError: no such optimizer.
        """
        # The official recipe gives AdamW a third state tensor.
        more = {"amsgrad": True} if settings.name == "AdamW" else {}
        return self.optimizer_over(_parameter_groups(model, settings), settings, **more)

    def draw_object_counts(
        self,
        counts: np.ndarray[Any, Any],
        num_draws: int,
        generator: np.random.Generator,
    ) -> np.ndarray[Any, Any]:
        """Return objects in drawn training images: mosaics of four, some mixed with another.

        No object is taken to be cut away and none to be pasted in, so a drawn image is rather
        fuller than a real one.
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

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the main branch's boxes in pixels and probabilities, `[B, 4 + nc, A]`, float32.

        Layers that only the auxiliary branch needs are not run. Maps are decoded in float32:
        half precision has steps of half a pixel at 640.
        """
        import torch

        network = _as_network(model)
        maps = _main_maps(network, batch["images"])
        with torch.autocast(batch["images"].device.type, enabled=False):
            full = [part.float() for part in maps]
            return network.head.decode(full, network.head.branches - 1)

    def open_data(self, options: DataOptions) -> TrainingData:
        """Return the checked YOLO data set.

        Raises:
            BadInputError: the data cannot be used.
        """
        from dataclasses import replace

        from .loader import open_yolo_data

        extra = {"validation_size": self.validation_size, **(options.extra or {})}
        strengths = options.hyperparameters or self.hyperparameters
        chosen = replace(options, extra=extra, hyperparameters=strengths)
        return open_yolo_data(chosen)

    def write_sample(self, directory: Path, *, force: bool = False) -> Path:
        """Write the sample data set and return the path of its `data.yaml`; see `write_sample`.

        Raises:
            BadInputError: the directory holds files and `force` is not given, or cannot be written.
        """
        from .sample import write_sample

        return write_sample(directory, force=force)

    def load_weights(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill the model from a checkpoint and return one sentence on what matched.

        Raises:
            BadInputError: the file cannot be read, is refused as unsafe, or nothing in it fits.
        """
        from .weights import load_weights

        return str(load_weights(_as_network(model), path))


def from_name(name: str, **arguments: Any) -> YoloV9:
    """Return the workload of a configuration.

    Args:
        name: one of `names()`, or the path of a description file.
        **arguments: as `YoloV9` takes them.

    Raises:
        UnknownNameError: no such configuration; the nearest is suggested.
        UsageError: an argument the workload does not take, or out of its range.
    """
    try:
        return YoloV9(name, **arguments)
    except TypeError as error:
        reason = str(error).replace("YoloV9.__init__() ", "")
        raise UsageError(f"{name} cannot be set so: {reason}.") from None


def _check_arguments(num_classes: int, image_size: int, objects_per_image: int) -> None:
    if num_classes < 1:
        raise UsageError(f"num_classes {num_classes} is below 1.")
    if objects_per_image < 0:
        raise UsageError(f"--objects-per-image {objects_per_image} is below 0.")
    if image_size < STRIDE or image_size % STRIDE:
        nearest = max(STRIDE, round(image_size / STRIDE) * STRIDE)
        raise UsageError(
            f"--img {image_size} is no multiple of the stride {STRIDE}. Nearest: {nearest}."
        )


def _is_file_name(text: str) -> bool:
    return Path(text).suffix in {".yaml", ".yml"}


def _find_cfg(cfg: str) -> str:
    """Return a configuration's name or an existing file's path.

    The official repository's paths, such as `models/detect/yolov9-s.yaml`, mean what ships here
    where there is no such file.
    """
    if _is_file_name(cfg) and Path(cfg).is_file():
        return cfg
    name = Path(cfg).stem if _is_file_name(cfg) else cfg
    if name not in names():
        hint = f"Known: {', '.join(names())}; or a PATH.yaml."
        raise UnknownNameError("model", cfg, names(), hint)
    return name


def _merged(values: dict[str, float], given: Mapping[str, float]) -> dict[str, float]:
    from .hyperparameters import check_hyperparameters

    for name in given:
        if name not in values:
            raise UnknownNameError("hyperparameter", name, values)
    check_hyperparameters(dict(given), source="hyperparameters")
    return values | dict(given)


def _as_network(model: torch.nn.Module) -> DetectionModel:
    from .network import DetectionModel

    assert isinstance(model, DetectionModel)
    return model


def _main_maps(network: DetectionModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the raw maps of the main branch, running only the layers that it needs."""
    head = network.head
    last = len(network.model) - 1
    sources = [_absolute(source, index) for index, source in enumerate(network.sources)]
    start = (head.branches - 1) * head.nl
    needed = set(sources[last][start:])
    for index in range(last - 1, -1, -1):
        if index in needed:
            needed.update(sources[index])
    outputs: dict[int, Any] = {-1: images}
    last_use = {source: index for index in sorted(needed - {-1}) for source in sources[index]}
    for index in sorted(needed - {-1}):
        inputs = [outputs[source] for source in sources[index]]
        several = isinstance(network.sources[index], list)
        outputs[index] = network.model[index](inputs if several else inputs[0])
        # What no later layer reads goes at once, as in training's forward.
        for source in sources[index]:
            if last_use[source] == index and source not in sources[last][start:]:
                outputs.pop(source, None)
    # The inputs of other branches are not looked at; the images stand in for them.
    inputs = [outputs.get(source, images) for source in sources[last]]
    return head.raw(inputs, head.branches - 1)


def _absolute(source: int | list[int], index: int) -> list[int]:
    """Return a layer's sources as layer numbers; -1 is the image."""
    flat = source if isinstance(source, list) else [source]
    return [index - 1 if s == -1 else s for s in flat]


def _parameter_groups(model: torch.nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the groups in the official order: biases, decayed weights, norm weights."""
    from torch import nn

    norms = tuple(kind for name, kind in vars(nn).items() if "Norm" in name)
    kinds: dict[str, list[torch.nn.Parameter]] = {"bias": [], "weight": [], "norm": []}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "norm" if isinstance(module, norms) else "weight"
            kinds["bias" if name == "bias" else kind].append(parameter)
    return [
        {
            "params": parameters,
            "kind": kind,
            "weight_decay": settings.weight_decay if kind == "weight" else 0.0,
        }
        for kind, parameters in kinds.items()
        if parameters
    ]
