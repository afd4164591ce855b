"""The official YOLOv9 as the user has checked it out: its own model and its own loss, as they are.

The step is that of its trainers: images as float32 in 0-1, the loss inside autocast, gradients
clipped at 10, an average of the weights, and a validation in half precision of twice the batch
with its non-maximum suppression. Nothing of the repository is part of memplan.

Limits: the rounding of fresh weights to half, metrics and plots are left out. The average moves by
memplan's operator, which needs no temporary copies.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.family import Family
from memplan.files import Source
from memplan.workload import Batch, Choice, CrowdedBatch, OptimizerSettings, Question, Workload

from .checkout import import_checkout

if TYPE_CHECKING:
    import torch

DEFAULT_CFG = "yolov9-c"
_STRIDE = 32
_VALIDATION_FACTOR = 2
_VALIDATION_PAD = 0.5  # strides that the validation loader adds to a side
# What non-maximum suppression keeps of an image at most: candidates going in, boxes coming out.
_MOST_CANDIDATES = 30_000
_MOST_DETECTIONS = 300
_CONFIDENCE, _OVERLAP = 0.001, 0.7
# The loss of each kind of head, by the head's name in the configuration.
_LOSSES = {"Triple": "utils.loss_tal_triple", "Dual": "utils.loss_tal_dual", "": "utils.loss_tal"}
_NEEDED = ("models/yolo.py", "models/common.py", "utils/general.py", "utils/torch_utils.py")
_HEAD_TENSORS = ("stride", "anchors", "strides")


class Official(Workload):
    """The model and the loss of a checkout, in the step of its trainer.

    Args:
        path: the checkout's folder.
        cfg: a configuration of its `models/detect`, by name, or the path of a file.
        hyp: a hyperparameter file of its `data/hyps`, by name, or the path of a file; None takes
            the only one, or `hyp.scratch-high`.
        num_classes: classes of the head, >= 1.
        image_size: side of the square training images, a multiple of 32 pixels.
        objects_per_image: boxes in each image, >= 0.
        positives_per_object: predictions that the loss matches with a box; its assigner takes ten
            at most.
        candidates_per_image: predictions that go into non-maximum suppression.
        validation_batch_size: images validated at once, >= 1; None takes twice the micro-batch,
            as the trainers do.

    Raises:
        BadInputError: the path is no checkout, lacks a file, or cannot be imported.
        UsageError: a number is out of its range.
    """

    clip_gradient_norm = 10.0
    keeps_average = True
    nominal_batch_size = 64
    stride = _STRIDE
    loss_names = ("box_loss", "cls_loss", "dfl_loss")
    states_sizes = True
    # The checkout's own function makes the optimizer, and knows no fused kernels.
    offers_fused = False
    deterministic = True
    cublas_workspace_config = ":4096:8"

    def __init__(
        self,
        path: str | Path,
        *,
        cfg: str | Path = DEFAULT_CFG,
        hyp: str | Path | None = None,
        num_classes: int = 80,
        image_size: int = 640,
        objects_per_image: int = 20,
        positives_per_object: int = 10,
        candidates_per_image: int = _MOST_CANDIDATES,
        validation_batch_size: int | None = None,
    ) -> None:
        if validation_batch_size is not None and validation_batch_size < 1:
            raise UsageError(f"--val-batch {validation_batch_size} is below 1.")
        _check(num_classes, image_size, objects_per_image, positives_per_object)
        self.path = _checked_path(Path(path).expanduser())
        self.cfg_path = _find(self.path, "models/detect", cfg, "configuration")
        self.hyperparameters = _read(_find_hyp(self.path, hyp))
        self.name = f"official:{self.cfg_path.stem}"
        self.num_classes = num_classes
        self.image_size = image_size
        self.objects_per_image = objects_per_image
        self.positives_per_object = positives_per_object
        self.candidates_per_image = min(candidates_per_image, _MOST_CANDIDATES)
        self.validation_batch_size = validation_batch_size
        self.head = _head_of(self.cfg_path)
        self._loss_module = next(m for kind, m in _LOSSES.items() if kind in self.head)
        names = ("models.yolo", self._loss_module, "utils.torch_utils", "utils.general")
        self._modules: Mapping[str, ModuleType] = import_checkout(self.path, names)
        self._criterion: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without what the checkout's files define there anew."""
        return {**vars(self), "_modules": tuple(self._modules), "_criterion": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import the checkout in this process, once for all workloads of it."""
        modules = _imported_once(state["path"], state["_modules"])
        vars(self).update(state, _modules=modules)

    @property
    def _is_single(self) -> bool:
        return self._loss_module == _LOSSES[""]

    def build_model(self) -> torch.nn.Module:
        """Return the checkout's model of the configuration, fresh."""
        with _quiet():
            model: torch.nn.Module = self._modules["models.yolo"].Model(
                str(self.cfg_path), ch=3, nc=self.num_classes
            )
        model.hyp = {**self.hyperparameters, "label_smoothing": 0.0}  # type: ignore[assignment]
        model.nc = self.num_classes  # type: ignore[assignment]
        return model.train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` uint8 and targets `[n, 6]`: image, class, xywh in 0-1."""
        return self._batch("images", micro_batch_size, self.image_size, self.objects_per_image)

    def make_crowded_batch(self, micro_batch_size: int) -> CrowdedBatch:
        """Return a batch with twice the objects: the assigner pads images to the fullest."""
        objects = max(2 * self.objects_per_image, 20)
        batch = self._batch("images", micro_batch_size, self.image_size, objects)
        return CrowdedBatch(batch=batch, objects_per_image=objects)

    def make_validation_batch(self, micro_batch_size: int) -> Batch:
        """Return `validation_batch_size` images, else twice, in full size, such as 672 for 640."""
        side = math.ceil(self.image_size / _STRIDE + _VALIDATION_PAD) * _STRIDE
        images = self._num_validated(micro_batch_size)
        return self._batch("validation_images", images, side, self.objects_per_image)

    def _num_validated(self, micro_batch_size: int) -> int:
        return self.validation_batch_size or micro_batch_size * _VALIDATION_FACTOR

    def _batch(self, key: str, num_images: int, side: int, objects: int) -> Batch:
        import torch

        rows = [[image, 0, 0.5, 0.5, 0.5, 0.5] for image in range(num_images)] * objects
        return {
            key: torch.zeros(num_images, 3, side, side, dtype=torch.uint8),
            "targets": torch.tensor(sorted(rows)).reshape(-1, 6),
        }

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with images in 0-1: float32 to train on, half to validate."""
        images: dict[str, torch.Tensor] = dict(batch)
        if isinstance(batch, dict):
            batch.clear()  # so that each copy of the images goes as soon as the next is there
        if "images" in images:
            images["images"] = images["images"].float()
            images["images"] = images["images"] / 255
        else:
            images["validation_images"] = images["validation_images"].half()
            images["validation_images"] /= 255
        return images

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the checkout's loss, scaled by the batch size, and its parts (box, cls, dfl)."""
        with _quiet():
            loss, parts = self._loss_of(model)(model(batch["images"]), batch["targets"])
        return loss, parts

    def _loss_of(self, model: torch.nn.Module) -> Any:
        """Return the model's loss, made when it is first asked for."""
        criterion = self._criterion() if self._criterion is not None else None
        if criterion is None or getattr(model, "criterion", criterion) is not criterion:
            with _quiet():
                criterion = self._modules[self._loss_module].ComputeLoss(model)
            model.criterion = criterion
            self._criterion = weakref.ref(criterion)
        return criterion

    def make_optimizer(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        """Return the checkout's optimizer: weights, norm weights and biases in groups.

        Raises:
            UnknownNameError: the checkout does not know the optimizer.
        """
        _move_head(model)
        self._loss_of(model)
        make = self._modules["utils.torch_utils"].smart_optimizer
        arguments = (settings.learning_rate, settings.momentum, settings.weight_decay)
        try:
            with _quiet():
                optimizer: torch.optim.Optimizer = make(model, settings.name, *arguments)
        except NotImplementedError:
            known = ("SGD", "Adam", "AdamW", "RMSProp", "LION")
            hint = f"This checkout knows: {', '.join(known)}."
            raise UnknownNameError("optimizer", settings.name, known, hint) from None
        return optimizer

    def recompute_blocks(self, model: torch.nn.Module) -> list[str]:
        """Return the paths of the layers that have weights, the head excepted."""
        layers = list(model.model)  # type: ignore[arg-type]
        return [
            f"model.{index}"
            for index, layer in enumerate(layers[:-1])
            if any(True for _ in layer.parameters())
        ]

    def predict(self, model: torch.nn.Module, batch: Batch) -> Any:
        """Return each image's detections, `[n, 6]`.

        Every branch runs, as in the checkout's validation; a single-branch model also computes its
        loss on the batch. The weights are half meanwhile.
        """
        import torch

        images = batch["validation_images"]
        with torch.autocast(images.device.type, enabled=False), _quiet():
            _cast(model, torch.float16)
            try:
                decoded, maps = model(images)
                if self._is_single:
                    criterion = self._criterion() if self._criterion is not None else None
                    if criterion is not None:
                        criterion(maps, batch["targets"])
                boxes = decoded[-1] if isinstance(decoded, list | tuple) else decoded
                return self._modules["utils.general"].non_max_suppression(
                    boxes, _CONFIDENCE, _OVERLAP, multi_label=True, max_det=_MOST_DETECTIONS
                )
            finally:
                _cast(model, torch.float32)

    def checkpoint(self, model: torch.nn.Module, average: torch.nn.Module | None) -> Any:
        """Return the half copies that the trainer saves: a model is copied whole, then halved."""
        saved = []
        for module in (model, average):
            if module is not None:
                copies = [tensor.detach().clone() for tensor in module.state_dict().values()]
                for index, tensor in enumerate(copies):
                    if tensor.dtype.is_floating_point:
                        copies[index] = tensor.half()
                del tensor
                saved.append(copies)
        return saved

    def num_chosen(self, choice: Choice) -> int | None:
        """Return what the assigner makes positive, and what goes into non-maximum suppression."""
        shape = choice.shape
        if choice.section != "validation":
            return super().num_chosen(choice)
        if choice.operator == "torchvision.nms":
            return min(shape[0], _MOST_DETECTIONS)
        images = self._num_validated(choice.micro_batch_size)
        if len(shape) > 1 and shape[0] == images and shape[1] != self.num_classes:
            positives = images * self.objects_per_image * self.positives_per_object
            return min(positives, math.prod(shape[:2])) * math.prod(shape[2:])
        return min(math.prod(shape), self.candidates_per_image)

    def answer(self, question: Question) -> float:
        """Return yes or one, but that no sum of target scores lies below one."""
        return 0 if question.made_by == "aten.lt" else 1


@functools.lru_cache(maxsize=4)
def _imported_once(path: Path, names: tuple[str, ...]) -> Mapping[str, ModuleType]:
    return import_checkout(path, names)


class OfficialFamily(Family):
    """`official:PATH`: the checkout in a folder, whose code runs."""

    def made_by(self, name: str) -> type[Official]:
        """Return the class of every checkout's workload."""
        del name
        return Official

    def make(self, name: str, **arguments: Any) -> Official:
        """Return the workload of a checkout's folder.

        Raises:
            BadInputError: no checkout there, or it cannot be used.
            UsageError: an argument is out of its range.
        """
        return Official(name, **arguments)


FAMILY = OfficialFamily()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the checkout's older calls from warning; they are its authors' to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(num_classes: int, image_size: int, objects: int, positives: int) -> None:
    for name, value, least in (
        ("num_classes", num_classes, 1),
        ("--objects-per-image", objects, 0),
        ("positives_per_object", positives, 1),
    ):
        if value < least:
            raise UsageError(f"{name} {value} is below {least}.")
    if image_size < _STRIDE or image_size % _STRIDE:
        nearest = max(_STRIDE, round(image_size / _STRIDE) * _STRIDE)
        raise UsageError(
            f"--img {image_size} is no multiple of the stride {_STRIDE}. Nearest: {nearest}."
        )


def _checked_path(path: Path) -> Path:
    if not path.is_dir():
        raise BadInputError(
            f"official:{path}: there is no such folder. Give the path of a checkout of the "
            "official repository."
        )
    missing = [name for name in _NEEDED if not (path / name).is_file()]
    if missing:
        raise BadInputError(
            f"official:{path} is no checkout of the official repository: {missing[0]} is missing. "
            "Give the folder that holds models/ and utils/."
        )
    return path.resolve()


def _find(path: Path, folder: str, name: str | Path, kind: str) -> Path:
    """Return a file of the checkout by its name, or an existing one by its path."""
    for place in (Path(name), path / name, path / folder / f"{Path(name).stem}.yaml"):
        if place.suffix in {".yaml", ".yml"} and place.is_file():
            return place.resolve()
    known = [file.stem for file in (path / folder).glob("*.yaml")]
    hint = f"{path / folder} has: {', '.join(sorted(known)) or 'none'}."
    raise UnknownNameError(kind, str(name), known, hint)


def _find_hyp(path: Path, name: str | Path | None) -> Path:
    folder = "data/hyps"
    if name is not None:
        given = Path(name)
        if given.suffix not in {".yaml", ".yml"}:  # such as hyp.scratch-high
            given = given.with_name(f"{given.name}.yaml")
        file = next((f for f in (given, path / folder / given.name) if f.is_file()), None)
        return file or _find(path, folder, name, "hyperparameter file")
    files = sorted((path / folder).glob("*.yaml"))
    if not files:
        raise BadInputError(f"{path / folder} has no hyperparameter file. Give one with hyp=PATH.")
    return next((file for file in files if file.stem == "hyp.scratch-high"), files[0])


def _read(file: Path) -> dict[str, Any]:
    content = Source(path=file, what="a table of names and values").yaml()
    if not isinstance(content, dict):
        raise BadInputError(f"{file} is no table of names and values.")
    return content


def _head_of(cfg: Path) -> str:
    """Return the name of the head that a configuration ends with."""
    layers = _read(cfg).get("head")
    last = layers[-1] if isinstance(layers, list) and layers else None
    if not isinstance(last, list) or len(last) < 3:
        raise BadInputError(f"{cfg} ends with no head. Give a configuration of models/detect.")
    return str(last[2])


def _move_head(model: torch.nn.Module) -> None:
    """Move the tensors that the head keeps beside its parameters, as the model's `.to` does."""
    head = model.model[-1]  # type: ignore[index]
    device = next(model.parameters()).device
    for name in _HEAD_TENSORS:
        tensor = getattr(head, name, None)
        if tensor is not None and hasattr(tensor, "to"):
            setattr(head, name, tensor.to(device))


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Turn parameters and buffers into a dtype one by one, children first, as `.half()` does.

    `Module.half` fails on fake parameters, which hold weak references (PyTorch 2.11).
    """
    import torch

    for child in model.children():
        _cast(child, dtype)
    for name in [name for name, _ in model.named_parameters(recurse=False)]:
        trained = getattr(model, name).requires_grad
        cast = getattr(model, name).detach().to(dtype)
        setattr(model, name, torch.nn.Parameter(cast, requires_grad=trained))
    for name in [name for name, _ in model.named_buffers(recurse=False)]:
        if getattr(model, name).dtype.is_floating_point:
            setattr(model, name, getattr(model, name).to(dtype))
    for name in _HEAD_TENSORS:
        tensor = vars(model).get(name)
        if isinstance(tensor, torch.Tensor):
            setattr(model, name, tensor.to(dtype))
