"""The training step: the one the recorder records is the one the trainer runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from memplan.capabilities import Resizes, SavesItself
from memplan.errors import UsageError, is_out_of_memory
from memplan.lean import Lean
from memplan.spec import StepSpec, check_step
from memplan.step.average import ModelAverage
from memplan.step.optimizers import optimizer_of
from memplan.step.recompute import apply_recompute
from memplan.workload import Batch, OptimizerSettings, Workload

AUTOCAST = {"amp-fp16": torch.float16, "amp-bf16": torch.bfloat16}


@contextlib.contextmanager
def library_settings(spec: StepSpec) -> Iterator[None]:
    """Set PyTorch's switches for its libraries inside the context, as training sets them."""
    cudnn = torch.backends.cudnn
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=spec.cudnn_benchmark,
        deterministic=spec.deterministic,
        allow_tf32=spec.allow_tf32,
    ):
        torch.use_deterministic_algorithms(spec.deterministic, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warns_only)


class Observer(Protocol):
    """What a recorder wants to be told while a step runs."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a context in which everything belongs to the named phase."""


class _Unobserved:
    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        del name
        return contextlib.nullcontext()


def move_model(model: torch.nn.Module, device: torch.device, memory_format: str) -> torch.nn.Module:
    """Move parameters and buffers to the device, one by one and children first, in place.

    `Module.to` allocates in the same order, but fails on fake parameters, which hold weak
    references (PyTorch 2.11).

    Returns:
        The same module.
    """
    channels_last = memory_format == "channels-last"
    # What several modules share is moved once and stays shared. The tensors left behind are kept
    # until the end, so that no new one gets the identity of an old one.
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def moved(tensor: torch.Tensor) -> Any:
        if id(tensor) not in seen:
            layout = torch.channels_last if channels_last and tensor.dim() == 4 else None
            there = tensor.detach().to(device, memory_format=layout or torch.preserve_format)
            if isinstance(tensor, torch.nn.Parameter):
                there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
            seen[id(tensor)] = tensor, there
        return seen[id(tensor)][1]

    def visit(module: torch.nn.Module) -> None:
        for child in module.children():
            visit(child)
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for registry in registries:
            for name, tensor in registry.items():
                if tensor is not None:
                    registry[name] = moved(tensor)

    visit(model)
    return model


def as_specified(workload: Workload, spec: StepSpec) -> Workload:
    """Return the workload as a spec has it: itself, or a copy that matches objects in parts."""
    if spec.assigner_parts in {0, workload.assigner_parts}:
        return workload
    changed = copy.copy(workload)
    changed.assigner_parts = spec.assigner_parts
    return changed


class TrainingStep:
    """A model with everything that one optimizer step needs, on one device.

    Args:
        workload: builds model, loss and optimizer.
        spec: how the step runs.
        device: where it trains.
        model: an existing model on any device; None builds a fresh one.
        optimizer: its learning rate and other numbers; None takes the defaults.
        observer: told about the phases; None tells nobody.
        run_backward: differentiates a scalar; None uses PyTorch's engine.
    """

    def __init__(
        self,
        workload: Workload,
        spec: StepSpec,
        device: torch.device,
        *,
        model: torch.nn.Module | None = None,
        optimizer: OptimizerSettings | None = None,
        observer: Observer | None = None,
        run_backward: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        self.workload = workload = as_specified(workload, spec)
        self.spec = spec
        self.device = device
        self.observer: Observer = observer or _Unobserved()
        self._run_backward = run_backward or _engine_backward
        self.keeps_gradients = False
        """Whether gradients are set to zero where they are, instead of given back."""
        self._can_be_lean = True
        """Until it turns out that no block of the model can."""
        with self.observer.phase("transfer"):
            fresh = workload.build_model() if model is None else model
            self.model = move_model(fresh, device, spec.memory_format).train()
        with self.observer.phase("average"):
            self.average = self._new_average() if workload.keeps_average else None
        check_step(workload, spec)
        if (lean := self._lean()) is not None:
            lean.make_lean(self.model)
        apply_recompute(self.model, spec.recompute, self._lean)
        if spec.compiled:
            self.model.compile()
        self.reset_loss()
        self.numbers = replace(optimizer or OptimizerSettings(), spec=spec)
        self.optimizer = optimizer_of(workload, self.model, self.numbers)
        self._use_foreach()
        self.scaler = torch.amp.grad_scaler.GradScaler(
            device.type, enabled=spec.precision == "amp-fp16"
        )

    def _lean(self) -> Lean | None:
        """Return the workload where its blocks are lean."""
        return self.workload if self.spec.lean and isinstance(self.workload, Lean) else None

    def lighter(self) -> StepSpec | None:
        """Return the cheapest spec that keeps less for backward; None where nothing is left.

        Lean blocks take less time than recomputing all of them does.
        """
        if self.spec.compiled:
            return None
        if self._can_be_lean and not self.spec.lean and isinstance(self.workload, Lean):
            return replace(self.spec, lean=True)
        blocks = self.workload.recompute_blocks(self.model)
        kept = [path for path in blocks if path not in self.spec.recompute]
        return replace(self.spec, recompute=(*self.spec.recompute, *kept)) if kept else None

    def lighten(self, spec: StepSpec | None = None) -> str:
        """Keep less for backward from here on, between two steps; return by which levers.

        Parameters, buffers and modules stay the same objects, so state_dict, hooks and optimizer
        know nothing of it. Loss and statistics stay those of the plain step, bit for bit, and so do
        the gradients of recomputed blocks; those of lean blocks are rounded differently.

        Args:
            spec: this step's own, but for `lean` and more paths in `recompute`; None takes
                `lighter`.

        Returns:
            `lean`, `recompute`, or both; empty where nothing is left to do.
        """
        before, wanted = self.spec, spec or self.lighter()
        if wanted is None:
            return ""
        self.spec = wanted
        if wanted.lean and not before.lean and (lean := self._lean()) is not None:
            try:
                lean.make_lean(self.model)
            except UsageError:  # no block of this model can be
                self._can_be_lean = False
                self.spec = replace(wanted, lean=False)
                if spec is None:
                    return self.lighten()
        new = [path for path in wanted.recompute if path not in before.recompute]
        apply_recompute(self.model, new, self._lean)
        changed = {"lean": self.spec.lean and not before.lean, "recompute": bool(new)}
        return " and ".join(name for name, is_new in changed.items() if is_new)

    def _new_average(self) -> ModelAverage:
        try:
            return ModelAverage(self.model)
        except Exception as error:
            if self.device.type == "cpu" or not is_out_of_memory(error):
                raise
        return ModelAverage(self.model, on_host=True)

    @property
    def has_average_away(self) -> bool:
        """Whether the averaged weights are kept on the host, where the device was short of room."""
        return self.average is not None and self.average.is_away

    def spare_average(self) -> bool:
        """Keep the averaged weights on the host from here on; return whether that makes room."""
        if self.average is None or self.has_average_away or self.device.type == "cpu":
            return False
        self.average.leave_device()
        return True

    def reset_loss(self) -> None:
        """Take the loss from the model itself; `compute_loss` may be replaced by a wrapped one."""
        self.compute_loss: Callable[[Batch | None], tuple[torch.Tensor, torch.Tensor]] = partial(
            self.workload.compute_loss, self.model
        )

    def _use_foreach(self) -> None:
        """Ask for the multi-tensor kernels by name.

        PyTorch takes them by default on CUDA, but does not recognise fake parameters as ordinary
        ones and would record the one-by-one path.
        """
        if self.device.type == "cuda":
            for group in self.optimizer.param_groups:
                if "foreach" in group and not group.get("fused"):
                    group["foreach"] = True

    def autocast(self) -> torch.autocast:
        """Return the autocast context of this step's precision."""
        dtype = AUTOCAST.get(self.spec.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the device, as the model takes it."""
        with self.observer.phase("transfer"):
            moved = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()
            }
            return self.workload.prepare(moved)

    def training_batch(self, batch: Batch, side: int | None = None) -> Batch:
        """Return a training batch on the device, resized where the workload trains at many sizes.

        Args:
            batch: CPU tensors.
            side: as `Resizes.draw_side` drew it; None means the largest.
        """
        moved = self.to_device(batch)
        with self.observer.phase("transfer"):
            if isinstance(self.workload, Resizes):
                return self.workload.resize(moved, side)
            return moved

    def accumulate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one micro-batch forward and backward, adding to the gradients.

        Args:
            batch: prepared, on the device.

        Returns:
            The loss, a detached scalar, and its parts, 1-D, both on the device.
        """
        loss, parts = self.forward(batch)
        self.backward(loss)
        return loss.detach(), parts

    def forward(self, batch: Batch | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a prepared batch's loss, a scalar, and its parts, 1-D."""
        with self.observer.phase("forward"), self.autocast():
            return self.compute_loss(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients."""
        with self.observer.phase("backward"):
            self._run_backward(self.scaler.scale(loss))

    def update(self) -> None:
        """Take an optimizer step, drop the gradients and move the average."""
        self.apply_gradients()
        self.release_gradients()
        self.move_average()

    def apply_gradients(self) -> None:
        """Unscale and clip the gradients and step the optimizer, unless they overflowed."""
        with self.observer.phase("optimizer_step"):
            if self.workload.clip_gradient_norm is not None:
                self.scaler.unscale_(self.optimizer)
                torch.nn.utils.clip_grad_norm_(
                    self.model.parameters(),
                    self.workload.clip_gradient_norm,
                    foreach=True if self.device.type == "cuda" else None,
                )
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def release_gradients(self) -> None:
        """Give the gradients' memory back, or set them to zero where it is kept."""
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def move_average(self) -> None:
        """Move the averaged weights, where an average is kept."""
        if self.average is not None:
            with self.observer.phase("average"):
                self.average.update()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the averaged weights on the device inside, where `spare_average` took them away."""
        with contextlib.nullcontext() if self.average is None else self.average.on(self.device):
            yield

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Any, torch.Tensor | None]:
        """Return the averaged model's (else the model's) predictions for a prepared batch.

        With them come the parts of its loss, on the device; None where validation has no loss.
        """
        model = self.average.model if self.average is not None else self.model.eval()
        try:
            with self.observer.phase("predict"), self.autocast():
                return self.workload.evaluate(model, batch)
        finally:
            self.model.train()

    @torch.no_grad()
    def save(self) -> Any:
        """Return what a checkpoint takes from the device."""
        with self.observer.phase("save"):
            average = self.average.model if self.average is not None else None
            if isinstance(self.workload, SavesItself):
                return self.workload.checkpoint(self.model, average)
            # Copied to the host, which allocates nothing on the device.
            for module in (self.model, average):
                for tensor in () if module is None else module.state_dict().values():
                    tensor.detach().cpu()
            return None


def _engine_backward(loss: torch.Tensor) -> None:
    torch.autograd.backward(loss)
