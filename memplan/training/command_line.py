"""The options of `memplan train`: the official recipe's by their names, and memplan's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from memplan.click_options import blocks_option, lever_options, options
from memplan.errors import UsageError
from memplan.spec import LEVERS
from memplan.training.options import ACCEPTED, REFUSED

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# What a bare option means where its value may be left out, as in the official recipe.
BARE = "<bare>"
_TAKE_A_VALUE = frozenset(
    {"--local_rank", "--bucket", "--entity", "--bbox_interval", "--artifact_alias"}
)
_MAY_TAKE_A_VALUE = frozenset({"--evolve", "--mask-ratio", "--upload_dataset"})
_AS_IT_IS = {"--mask-ratio": "4"}
"""Values of refused options that say what is done anyway."""

GROUPS = {
    "What is trained": ("cfg", "blocks", "workload", "data", "weights", "hyp", "img", "resume"),
    "How the batch is chosen": (
        "auto_batch", "batch", "batch_per_device", "val_batch", "accumulate", "effective_batch",
        "plan_file", "gpu", "calibration", "safety", "objects_per_image",
    ),
    "How a step runs": ("device", *(one.name for one in LEVERS if "train" in one.commands),
                        "guard", "workers", "cache", "rank_timeout"),
    "The recipe": (
        "epochs", "cos_lr", "flat_cos_lr", "fixed_lr", "close_mosaic", "patience",
        "freeze", "label_smoothing", "min_items", "single_cls", "rect",
        "image_weights", "quad", "multi_scale", "official_gains", "seed",
    ),
    "What is left behind": ("project", "name", "exist_ok", "save_every", "save_period", "nosave",
                            "noval", "noplots", "tensorboard"),
}  # fmt: skip
"""Options by the section of the help that shows them, in order."""


class TrainCommand(click.Command):
    """A command whose help is in sections, and that reads lists as the official recipe does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return the rest of the arguments once `--freeze 0 1 2` was read as one value."""
        return super().parse_args(ctx, _join_numbers(args, "--freeze"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section each."""
        parameters = {parameter.name: parameter for parameter in self.get_params(ctx)}
        for title, names in GROUPS.items():
            records = [parameters[name].get_help_record(ctx) for name in names]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _join_numbers(arguments: Iterable[str], option: str) -> list[str]:
    """Return the arguments with the numbers that follow an option joined by commas."""
    joined: list[str] = []
    is_list = False
    for argument in arguments:
        if is_list and argument.replace(",", "").isdigit():
            joined[-1] += argument if joined[-1].endswith("=") else f",{argument}"
            continue
        is_list = argument == option
        joined.append(f"{option}=" if is_list else argument)
    return joined


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    del ctx, parameter
    try:
        return tuple(int(part) for part in value.replace(",", " ").split()) or (0,)
    except ValueError:
        raise UsageError(
            f"--freeze {value} is no list of layers. Give numbers: 10, or 0 1 2."
        ) from None


def _refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Say why an official option is not offered, or that it changes nothing."""
    if ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.DEFAULT:
        return
    option = parameter.opts[0]
    if _AS_IT_IS.get(option) == value:
        return
    if option in ACCEPTED:
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"{option} changes nothing: {ACCEPTED[option]}.", err=True)
        return
    raise UsageError(f"{option} is not offered: {REFUSED[option]}. Leave it out.")


def _unused_option(name: str) -> _Decorator:
    """Return an option that is known by name, hidden, and answered with its reason."""
    spellings = [name, name.replace("_", "-")] if "_" in name else [name]
    kind: dict[str, Any] = {"is_flag": True}
    if name in _TAKE_A_VALUE:
        kind = {"type": str}
    elif name in _MAY_TAKE_A_VALUE:
        kind = {"is_flag": False, "flag_value": BARE, "type": str}
    return click.option(
        *spellings, hidden=True, expose_value=False, is_eager=True, callback=_refuse, **kind
    )


def _flag(name: str, text: str) -> _Decorator:
    return click.option(name, is_flag=True, help=text)


def _path(kind: str = "PATH", **settings: Any) -> dict[str, Any]:
    return {"type": click.Path(path_type=Path), "metavar": kind, **settings}


train_options = options(
    click.option("--cfg", metavar="NAME|PATH", help="A YOLOv9 configuration, or PATH.yaml."),
    blocks_option,
    click.option("--workload", metavar="NAME", help="Any other workload: a.b:f."),
    click.option("--data", help="The data set's data.yaml.", **_path("FILE")),
    click.option("--weights", default="", metavar="FILE",
                 help="Start from a checkpoint's weights; '' from fresh ones."),
    click.option("--hyp", metavar="FILE", help="Hyperparameters: a file, or the name of a shipped"
                 " one.  [scratch-high.yaml]"),
    click.option("--img", "--imgsz", "--img-size", "img", type=int, default=640, metavar="PIXELS",
                 show_default=True, help="Side of the training images."),
    click.option("--resume", is_flag=False, flag_value=BARE, metavar="[PATH]",
                 help="Go on with a run: its folder or last.pt; bare, the newest below the working "
                 "directory. Only --device, --workers, --noplots and --blocks go with it."),
    click.option("--auto-batch", is_flag=True,
                 help="Plan first: the largest micro-batch that fits, and accumulation."),
    click.option("--batch", "--batch-size", "batch", type=int, default=16, show_default=True,
                 metavar="N",
                 help="Images at once on all devices together; -1 means --auto-batch."),
    click.option("--batch-per-device", type=int, metavar="N",
                 help="Images at once on each device (the micro-batch), in place of --batch."),
    click.option("--val-batch", type=int, metavar="N",
                 help="Images validated at once.  [twice --batch]"),
    click.option("--accumulate", type=int, metavar="N",
                 help="Micro-batches a step of the optimizer."),
    click.option("--effective-batch", type=int, metavar="N",
                 help="Images a step of the optimizer.  [64 for YOLOv9]"),
    click.option("--plan", "plan_file", help="Follow a plan saved by memplan plan.",
                 **_path("FILE")),
    click.option("--gpu", metavar="INDEX|NAME",
                 help="With --auto-batch: the card to plan for.  [the one trained on]"),
    click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE",
                 help="With --auto-batch: what was measured on the card.  [as kept of it]"),
    click.option("--safety", type=click.FloatRange(0, 1, max_open=True), metavar="SHARE",
                 help="With --auto-batch: the share of the card to leave free.  [0.05]"),
    click.option("--objects-per-image", type=int, metavar="N",
                 help="With --auto-batch: labelled objects in an image.  [as the data has]"),
    click.option("--device", default="", metavar="WHERE",
                 help="cpu, a GPU's index, or several for a process on each: 0,1.  [the first "
                 "GPU, else cpu]"),
    lever_options("train"),
    click.option("--guard/--no-guard", default=True, show_default=True,
                 help="When memory runs out, halve the micro-batch and repeat the step."),
    click.option("--rank-timeout", type=float, default=10.0, show_default=True, metavar="MINUTES",
                 help="How long one of several processes may keep the others waiting."),
    click.option("--workers", type=int, default=8, show_default=True, metavar="N",
                 help="Most loader processes; 0 loads in the training process."),
    click.option("--cache", is_flag=False, flag_value="ram", default="",
                 metavar="[ram|disk|val]", help="Keep decoded images in host memory or on disk; "
                 "val: validation's, in memory."),
    click.option("--epochs", type=int, default=100, show_default=True, metavar="N",
                 help="Passes over the training images; 0 only evaluates --weights."),
    _flag("--cos-lr", "Learning rate along a cosine, not a line."),
    _flag("--flat-cos-lr", "Half the epochs flat, then along a cosine."),
    _flag("--fixed-lr", "The same learning rate throughout."),
    click.option("--close-mosaic", type=int, default=0, show_default=True, metavar="N",
                 help="No mosaics in the last N epochs."),
    click.option("--patience", type=int, default=100, show_default=True, metavar="N",
                 help="Stop after N epochs without a better fitness; 0 never."),
    click.option("--freeze", default="0", show_default=True, metavar="N...", callback=_numbers,
                 help="One number: that many first layers; several: those layers."),
    click.option("--label-smoothing", type=float, default=0.0, show_default=True, metavar="X",
                 help="No effect, as in the official recipe."),
    click.option("--min-items", type=int, default=0, show_default=True, metavar="N",
                 help="Leave out training images with fewer objects."),
    _flag("--single-cls", "Treat every object as one class."),
    _flag("--rect", "Batches of like aspect ratio in rectangles; no mosaics, no shuffling."),
    _flag("--image-weights", "Draw images of rare and badly detected classes more often."),
    _flag("--quad", "Make one image of twice the side from four; --batch counts the four."),
    _flag("--multi-scale", "Resize each batch to a side between half and one and a half of --img."),
    _flag("--official-gains", "Weigh box, class and distribution loss by 7.5, 0.5 and 1.5 as the "
          "official loss does, whatever --hyp says."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N",
                 help="Of weights, order and augmentation."),
    click.option("--project", default="runs/train", show_default=True,
                 help="Where run folders are made.", **_path("FOLDER")),
    click.option("--name", default="exp", show_default=True, metavar="NAME",
                 help="The run folder; a number is added when it exists."),
    _flag("--exist-ok", "Replace the records in the run folder if it exists."),
    click.option("--save-period", type=int, default=-1, show_default=True, metavar="N",
                 help="Also keep a checkpoint every N epochs; below 1 none."),
    _flag("--nosave", "Save after the last epoch only."),
    click.option("--save-every", type=float, default=10.0, show_default=True, metavar="MINUTES",
                 help="Also save last.pt this often within an epoch; 0 does not."),
    _flag("--noval", "Evaluate after the last epoch only."),
    _flag("--noplots", "Write no report.pdf and no plots."),
    _flag("--tensorboard", "Also write TensorBoard events into the run folder."),
    *map(_unused_option, (*REFUSED, *ACCEPTED)),
)  # fmt: skip


@click.command("train", cls=TrainCommand)
@train_options
def _reader(**_: Any) -> None:
    """Read options, for those who run nothing."""


def train_parameters() -> list[click.Parameter]:
    """Return the options of `memplan train`, each with its spellings."""
    return list(_reader.params)


def read_train_options(words: Iterable[str]) -> dict[str, Any]:
    """Return every option of `memplan train` by name, as words set it.

    Raises:
        click.ClickException: there is no such option, or its value is of another type.
        MemplanError: a value is refused.
    """
    return dict(_reader.make_context("train", list(words)).params)
