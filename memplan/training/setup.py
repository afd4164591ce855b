"""From options to a model on its device with its data: all that can fail before a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memplan.acceptance import DATA_OPTIONS, check_data
from memplan.answers import PlanAnswer
from memplan.capabilities import (
    KnowsData,
    LoadsWhole,
    hyperparameters,
    reader_of_data,
    reader_of_weights,
)
from memplan.errors import BadInputError, UsageError, is_out_of_memory
from memplan.spec import ALL_BLOCKS, LEVERS, StepSpec, check_step
from memplan.step.run import TrainingStep
from memplan.training.checkpoint import Checkpoint
from memplan.training.distributed import Ranks, join, place_in_machine, synchronise_norms
from memplan.training.guard import make_room
from memplan.training.options import TrainOptions, check_image_size
from memplan.training.random_states import seed_everything
from memplan.training.schedule import Recipe, Schedule, accumulation_steps, recipe_of
from memplan.workload import DataOptions, OptimizerSettings, ResumableData, TrainingData, Workload

WorkloadFactory = Callable[..., Workload]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to start."""

    options: TrainOptions
    """With a plan's settings, where there is one."""
    plan: PlanAnswer | None
    workload: Workload
    data: TrainingData
    recipe: Recipe
    step: TrainingStep
    effective_batch_size: float
    """Images that a step of the optimizer is meant to see."""
    warnings: tuple[str, ...]
    """What the user should know, a line each."""
    weights_report: str | None
    """What of a checkpoint's weights was loaded; None where none were asked for."""
    ranks: Ranks = field(default_factory=Ranks)
    """This process among those that train together."""

    @property
    def guards(self) -> bool:
        """Whether a step that finds no memory is repeated smaller.

        Not with batch norm over all processes: the others would wait in it for one that gave up.
        """
        return self.options.guard and not (self.spec.sync_bn and self.ranks.size > 1)

    @property
    def spec(self) -> StepSpec:
        """How a step runs: the very object that the plan, where there is one, predicted."""
        return self.step.spec

    @property
    def micro_batch_size(self) -> int:
        """Images in a micro-batch on each device, before memory runs out anywhere."""
        return self.options.micro_batch_size(self.ranks.size)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches a step of the optimizer, once warm-up is over."""
        at_once = self.micro_batch_size * self.ranks.size
        return accumulation_steps(self.effective_batch_size, at_once)

    @property
    def steps_an_epoch(self) -> int:
        """Steps of the optimizer in an epoch after warm-up."""
        micro_batches = self.data.num_batches(self.micro_batch_size * self.ranks.size)
        return math.ceil(micro_batches / self.accumulation_steps)

    @property
    def images_a_step(self) -> int:
        """Images that a step sees, once warm-up is over, on all devices."""
        return self.micro_batch_size * self.accumulation_steps * self.ranks.size

    @property
    def loss_names(self) -> tuple[str, ...] | None:
        """Names of the loss's parts, None where the workload does not name them."""
        return tuple(self.workload.loss_names) or None

    @property
    def hyperparameters(self) -> dict[str, float]:
        """All hyperparameters of the run: the loop's own and the workload's."""
        return {**vars(self.recipe), **hyperparameters(self.workload)}

    def schedule(self, micro_batch_size: int) -> Schedule:
        """Return the run's rates at a micro-batch size."""
        return Schedule(
            recipe=self.recipe,
            kind=self.options.schedule,
            epochs=max(self.options.epochs, 1),
            batches_per_epoch=self.data.num_batches(micro_batch_size * self.ranks.size),
            micro_batch_size=micro_batch_size * self.ranks.size,
            effective_batch_size=self.effective_batch_size,
        )


def open_training(
    make_workload: Workload | WorkloadFactory, options: TrainOptions
) -> tuple[Workload, TrainingData]:
    """Return the workload with as many classes as the data has, and the checked data.

    A plan must be made for this workload. A factory is called with `image_size`, with `hyp`,
    `hyperparameters` and other arguments where the options give them, and with `num_classes` where
    the data asks it.

    Raises:
        BadInputError: the data cannot be used, or has other classes than a finished workload.
        UsageError: the stride does not divide the image size.
    """
    arguments: dict[str, Any] = {"image_size": options.image_size}
    for name in ("hyp", "hyperparameters"):
        if getattr(options, name) is not None:
            arguments[name] = getattr(options, name)
    if options.quad:
        arguments["quad"] = True
    for name in ("multi_scale", "official_gains", "blocks"):
        if getattr(options, name):
            arguments[name] = getattr(options, name)
    if options.val_batch is not None:
        arguments["validation_batch_size"] = options.val_batch
    is_made = isinstance(make_workload, Workload)
    workload = make_workload if isinstance(make_workload, Workload) else make_workload(**arguments)
    check_image_size(options.image_size, workload.stride)
    knows = isinstance(workload, KnowsData) and workload.has_data(options.data)
    if not knows and not options.data.exists():
        raise BadInputError(
            f"No data description at {options.data}. Give a data.yaml, or write the sample set "
            "with `memplan data sample DIR`."
        )
    data_options = _data_options(options)
    known = {name: getattr(data_options, name, None) for name in DATA_OPTIONS}
    check_data(workload, known | dict(data_options.extra or {}))
    check_step(workload, options.spec)
    data = reader_of_data(workload, options.data).open_data(data_options)
    num_classes = workload.num_classes or data.num_classes
    if num_classes != data.num_classes:
        if is_made:
            raise BadInputError(
                f"{options.data} has {data.num_classes} classes but the workload {workload.name} "
                f"was made for {num_classes}. Make it with num_classes={data.num_classes}."
            )
        assert not isinstance(make_workload, Workload)
        workload = make_workload(**arguments, num_classes=data.num_classes)
    return workload, data


def step_spec(options: TrainOptions, workload: Workload) -> StepSpec:
    """Return how the step runs as options say, with what the workload has a say in."""
    spec = options.spec
    recompute = spec.recompute
    if recompute == ALL_BLOCKS:
        recompute = tuple(workload.recompute_blocks(workload.build_model()))
    parts = spec.assigner_parts or workload.assigner_parts
    return replace(spec, recompute=recompute, assigner_parts=parts)


def _data_options(options: TrainOptions) -> DataOptions:
    return DataOptions(
        path=options.data,
        image_size=options.image_size,
        num_workers=options.workers,
        seed=options.seed,
        single_class=options.single_cls,
        min_items=options.min_items,
        extra=_extra(options),
    )


def _extra(options: TrainOptions) -> dict[str, Any] | None:
    """Return the options that only some data pipelines know, where they are given."""
    names = ("cache", "rect", "image_weights")
    return {name: getattr(options, name) for name in names if getattr(options, name)} or None


def follow_plan(options: TrainOptions, plan: PlanAnswer | None, workload: Workload) -> TrainOptions:
    """Return the options with a plan's settings in place of their own.

    Raises:
        UsageError: the plan is for another workload or image size.
    """
    if plan is None:
        return options
    if (plan.workload.name, plan.workload.img) != (workload.name, options.image_size):
        raise UsageError(
            f"The plan is for {plan.workload.name} at {plan.workload.img} pixels, not for "
            f"{workload.name} at {options.image_size}. Plan again with --auto-batch."
        )
    unknown = {one.name: getattr(options.spec, one.name) for one in LEVERS if not one.is_predicted}
    differs = any(value != getattr(plan.spec, name) for name, value in unknown.items())
    return replace(
        options,
        spec=replace(plan.spec, **unknown) if differs else plan.spec,
        batch=plan.split.micro_batch_size * plan.split.devices,
        batch_per_device=plan.split.micro_batch_size,
        accumulate=plan.split.accumulation_steps,
        effective_batch=None,
    )


def find_device(name: str) -> torch.device:
    """Return the device that `--device` names.

    Raises:
        BadInputError: there is no such device here, or they are not as many as the processes.
    """
    place, size = place_in_machine()
    names = [part.strip() for part in name.split(",")]
    if len(names) > 1 and len(names) != size:
        raise BadInputError(
            f"--device {name} names {len(names)} devices, but {size} process(es) run here. Start "
            f"them with torchrun --nproc-per-node {len(names)} -m memplan train ..."
        )
    text = names[place if len(names) > 1 else 0].lower().removeprefix("cuda").removeprefix(":")
    if text == "cpu":
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if not text and not name:
        if num_gpus and place >= num_gpus:
            raise BadInputError(
                f"{size} processes run here, but this machine has {num_gpus} usable GPU(s). Give "
                f"torchrun --nproc-per-node {num_gpus}, or --device cpu."
            )
        return torch.device("cuda", place) if num_gpus else torch.device("cpu")
    if size > 1 and len(names) == 1:
        raise BadInputError(
            f"--device {name} is one GPU, but {size} processes run here. Leave it out, or name "
            "one for each."
        )
    index = int(text) if text.isdigit() else (0 if not text else -1)
    if index < 0:
        raise BadInputError(f"--device {name} is no device. Give cpu, or a GPU's index such as 0.")
    if index >= num_gpus:
        present = f"has {num_gpus} usable GPU(s)" if num_gpus else "has no usable NVIDIA GPU"
        raise BadInputError(
            f"--device {name} asks for GPU {index}, but this machine {present}. Use --device cpu."
        )
    return torch.device("cuda", index)


def spec_on(spec: StepSpec, device: torch.device) -> StepSpec:
    """Return how a step runs on a device: a CPU has fp32 only."""
    if device.type == "cuda" or spec.precision == "fp32":
        return spec
    return replace(spec, precision="fp32")


def _warnings(options: TrainOptions, spec: StepSpec, data: TrainingData, ranks: Ranks) -> list[str]:
    warnings = list(data.warnings)
    precision = options.spec.precision
    if "precision" in options.given and spec.precision != precision:
        warnings.append(f"--precision {precision} needs a GPU; this CPU trains in fp32.")
    if spec.sync_bn and ranks.size == 1:
        warnings.append("--sync-bn has no effect: one process trains.")
    elif spec.sync_bn and options.guard:
        warnings.append(
            "With --sync-bn the guard is off: processes that wait for each other in batch norm "
            "cannot repeat a step. Running out of memory ends the run."
        )
    if options.label_smoothing:
        warnings.append(
            f"--label-smoothing {options.label_smoothing} has no effect, as in the official recipe."
        )
    if options.close_mosaic > options.epochs > 0:
        warnings.append(
            f"--close-mosaic {options.close_mosaic} is above --epochs {options.epochs}, so mosaics "
            "are never closed, as in the official recipe."
        )
    return warnings


def _away_warning(step: TrainingStep) -> list[str]:
    if not step.has_average_away:
        return []
    text = (
        "The averaged weights are kept on the host, since the device has no room for them; each "
        "step takes longer by their transfer."
    )
    return [text]


def prepare(
    make_workload: Workload | WorkloadFactory,
    options: TrainOptions,
    *,
    plan: PlanAnswer | None = None,
    data: TrainingData | None = None,
    checkpoint: Checkpoint | None = None,
) -> Setup:
    """Return a run with its model on the device; with a checkpoint, where that left off.

    Raises:
        BadInputError: data, weights, device or checkpoint cannot be used.
        UsageError: options contradict the workload or the plan.
    """
    device = find_device(options.device)
    if data is None:
        workload, data = open_training(make_workload, options)
    else:
        assert isinstance(make_workload, Workload)
        workload = make_workload
    options = follow_plan(options, plan, workload)
    ranks = join(device, options.rank_timeout)
    _check_ranks(options, plan, ranks, checkpoint)
    recipe = recipe_of(hyperparameters(workload) | dict(options.hyperparameters or {}))
    spec = spec_on(step_spec(options, workload) if plan is None else options.spec, device)
    effective = _effective_batch_size(options, workload, ranks.size)
    seed_everything(options.seed)
    model = workload.build_model()
    report = None
    if options.weights is not None and checkpoint is None:
        reader = reader_of_weights(workload, options.weights)
        if options.epochs == 0 and isinstance(reader, LoadsWhole):
            report = reader.load_whole(model, options.weights)
        else:
            report = reader.load_weights(model, options.weights)
    freeze(model, options.freeze)
    if spec.sync_bn:
        model = synchronise_norms(model, device, ranks)
    _set_allocator(spec, device)
    numbers = _optimizer_settings(options, recipe, effective, workload, ranks.size)
    step = TrainingStep(workload, spec, device, model=model, optimizer=numbers)
    if not ranks.is_first:
        step.average = None  # the first process alone evaluates and saves
    if checkpoint is None and ranks.size > 1:
        ranks.send_model(step.model)
        seed_everything(options.seed + ranks.rank)
    if checkpoint is not None:
        restore(step, checkpoint)
        if isinstance(data, ResumableData):
            data.restore(checkpoint.data)
    return Setup(
        options=replace(options, spec=spec),
        plan=plan,
        workload=step.workload,
        data=data,
        recipe=recipe,
        step=step,
        effective_batch_size=effective,
        warnings=(*_warnings(options, spec, data, ranks), *_away_warning(step)),
        weights_report=report,
        ranks=ranks,
    )


def _check_ranks(
    options: TrainOptions, plan: PlanAnswer | None, ranks: Ranks, checkpoint: Checkpoint | None
) -> None:
    """Refuse what as many processes cannot do together.

    Raises:
        BadInputError: the checkpoint is of a run with another number of processes.
        UsageError: an option or the plan is for another number.
    """
    if checkpoint is not None and checkpoint.ranks != ranks.size:
        raise BadInputError(
            f"The checkpoint is of a run with {checkpoint.ranks} process(es), but {ranks.size} "
            f"run(s) now. Resume with torchrun --nproc-per-node {checkpoint.ranks}, or as many "
            "in --device."
        )
    if plan is not None and plan.split.devices != ranks.size and plan.gpu.source != "host memory":
        raise UsageError(
            f"The plan is for {plan.split.devices} device(s), but {ranks.size} train(s). Plan with "
            f"--devices {ranks.size}."
        )
    if options.image_weights and ranks.size > 1:
        raise UsageError(
            "--image-weights follows the evaluation, which one process makes. Leave it out, or "
            "train on one device."
        )


def _effective_batch_size(options: TrainOptions, workload: Workload, num_ranks: int) -> float:
    if options.accumulate is not None:
        return options.accumulate * options.micro_batch_size(num_ranks) * num_ranks
    return options.effective_batch or workload.nominal_batch_size


def _optimizer_settings(
    options: TrainOptions, recipe: Recipe, effective: float, workload: Workload, num_ranks: int
) -> OptimizerSettings:
    """Return the settings; weight decay grows with the images a step, as gradients are summed."""
    at_once = options.micro_batch_size(num_ranks) * num_ranks
    images = at_once * accumulation_steps(effective, at_once)
    return OptimizerSettings(
        learning_rate=recipe.lr0,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay * images / workload.nominal_batch_size,
    )


def _set_allocator(spec: StepSpec, device: torch.device) -> None:
    """Set the allocator's options, which must happen before the first allocation."""
    if spec.allocator and device.type == "cuda":
        torch.cuda.memory._set_allocator_settings(spec.allocator)  # noqa: SLF001 - the only door


def layer_paths(model: torch.nn.Module) -> list[str]:
    """Return the paths of a model's layers; a model that wraps one container has that one's."""
    children = list(model.named_children())
    if len(children) == 1 and isinstance(children[0][1], torch.nn.Sequential):
        name, container = children[0]
        return [f"{name}.{inner}" for inner, _ in container.named_children()]
    return [name for name, _ in children]


def freeze(model: torch.nn.Module, layers: Sequence[int]) -> None:
    """Exclude layers from training, in place.

    Args:
        model: with `layer_paths`.
        layers: one number freezes that many first layers (0 none), several freeze those layers.

    Raises:
        UsageError: the model has fewer layers.
    """
    chosen = range(layers[0]) if len(layers) == 1 else layers
    paths = layer_paths(model)
    for index in chosen:
        if index >= len(paths):
            raise UsageError(
                f"--freeze {' '.join(map(str, layers))} goes beyond the model's {len(paths)} "
                "layers."
            )
        model.get_submodule(paths[index]).requires_grad_(requires_grad=False)


def restore(step: TrainingStep, checkpoint: Checkpoint) -> None:
    """Put model, average, optimizer and scaler where the checkpoint has them.

    Raises:
        BadInputError: the checkpoint is of another architecture or optimizer.
    """
    try:
        _restore(step, checkpoint)
    except BadInputError:
        # What torch collects in a message of its own may have been that there was no room.
        make_room()
        _restore(step, checkpoint)


def _restore(step: TrainingStep, checkpoint: Checkpoint) -> None:
    try:
        step.model.load_state_dict(checkpoint.model)
        if step.average is not None and checkpoint.ema is not None:
            step.average.model.load_state_dict(checkpoint.ema)
            step.average.updates = checkpoint.ema_updates
        step.optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.scaler:
            step.scaler.load_state_dict(checkpoint.scaler)
        _check_state(step.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")
        raise BadInputError(
            f"The checkpoint does not fit {step.workload.name} ({reason}). Resume with the same "
            "configuration and optimizer, or start from its weights with --weights."
        ) from None


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Check that what an optimizer keeps of a parameter is of its shape, or one number.

    Raises:
        ValueError: a state is of another shape, which the next step would stumble over.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                is_tensor = isinstance(value, torch.Tensor)
                if is_tensor and value.shape != parameter.shape and value.numel() != 1:
                    raise ValueError(
                        f"the optimizer's {name} is {list(value.shape)}, its parameter "
                        f"{list(parameter.shape)}"
                    )
