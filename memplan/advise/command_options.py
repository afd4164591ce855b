"""Options of a pasted training command, written as `memplan train` knows them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan.errors import UsageError
from memplan.training.command_line import train_parameters

# Ultralytics' argument, and the option it is here; None where it changes no memory.
# Source: Ultralytics' documentation, "Configuration", train settings.
_ARGUMENTS: dict[str, str | None] = {
    "data": "--data",
    "epochs": "--epochs",
    "batch": "--batch",
    "imgsz": "--img",
    "device": "--device",
    "workers": "--workers",
    "optimizer": "--optimizer",
    "seed": "--seed",
    "close_mosaic": "--close-mosaic",
    "patience": "--patience",
    "freeze": None,
    "name": None,
    "project": None,
    "exist_ok": None,
    "pretrained": None,
    "verbose": None,
    "plots": None,
    "save": None,
    "save_period": None,
    "val": None,
    "cache": None,
    "cos_lr": None,
    "lr0": None,
    "lrf": None,
    "momentum": None,
    "weight_decay": None,
    "warmup_epochs": None,
    "task": None,
    "mode": None,
}
# Their YOLOv9 has one head: the networks that the official repository calls gelan.
_NETWORK = re.compile(r"(?:.*/)?yolov9([tsmce])\.(?:pt|yaml)")


def ultralytics_options(words: tuple[str, ...], assumptions: list[str]) -> tuple[str, ...]:
    """Return the options that `key=value` words are.

    Args:
        words: after `yolo`.
        assumptions: what is taken for granted is added here, a sentence each.

    Raises:
        UsageError: a word cannot be read, or the network is none of memplan's.
    """
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            pairs[key] = value
        elif word not in {"train", "detect"}:
            raise UsageError(
                f"--fit: {word!r} of a yolo command is neither `detect train` nor KEY=VALUE. "
                "Correct it."
            )
    options = ["--cfg", _network(pairs.pop("model", ""))]
    if pairs.pop("amp", "True").lower() == "false":
        options += ["--precision", "fp32"]
    for key, value in pairs.items():
        if key not in _ARGUMENTS:
            raise UsageError(
                f"--fit: what {key}={value} of a yolo command does to memory is not known. Leave "
                "it out, or watch the command itself: memplan run --gpu NAME -- yolo ..."
            )
        option = _ARGUMENTS[key]
        options += [option, value.strip("[]")] if option is not None else []
    assumptions.append(
        "Ultralytics' loss and validation are not the official ones: the command itself is "
        "watched by memplan run --gpu NAME -- yolo ..."
    )
    return tuple(options)


def _network(model: str) -> str:
    found = _NETWORK.fullmatch(model)
    if found is None:
        raise UsageError(
            f"--fit: model={model or '(none)'} is no YOLOv9 of t, s, m, c or e. Watch the command "
            "itself: memplan run --gpu NAME -- yolo ..."
        )
    return f"gelan-{found.group(1)}"


def whole_options(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words with shortened options, which argparse takes, written out.

    Raises:
        UsageError: several options begin so.
    """
    known = {
        name: one.opts[0] for one in train_parameters() for name in (*one.opts, *one.secondary_opts)
    }
    return tuple(_whole(word, known) for word in words)


def _whole(word: str, known: Mapping[str, str]) -> str:
    """Return a word with its option written out; `known` gives each spelling's first."""
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name == "--" or name in known:
        return word
    begun = sorted((one for one in known if one.startswith(name)), key=len)
    if not begun:
        return word
    # Of `--batch` and `--batch-per-device` the former is meant.
    if any(not one.startswith(begun[0]) and known[one] != known[begun[0]] for one in begun):
        raise UsageError(
            f"--fit: {name} may be {', '.join(sorted(begun))}. Write it out in the command."
        )
    return f"{begun[0]}{equals}{value}"
