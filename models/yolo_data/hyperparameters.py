"""Hyperparameters of the recipe by their official names, read from YAML and checked."""

from __future__ import annotations

import difflib
import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import BadInputError
from memplan.files import Source, brief, in_checkout, is_there
from memplan.files.yaml_text import NotYamlError, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT = "scratch-high.yaml"
_PROBABILITIES = frozenset({"flipud", "fliplr", "mosaic", "mixup", "copy_paste"})
# What may be below 0: nothing. What must stay below 1, or an image could shrink to nothing.
_BELOW_ONE = frozenset({"scale", "momentum", "warmup_momentum"})


GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
"""What the official loss multiplies by, whatever a file says. Source: its loss_tal files."""


def load_hyperparameters(path: Path | str | None = None) -> dict[str, float]:
    """Return all hyperparameters; those a file leaves out have scratch-high's values.

    Args:
        path: a YAML file, or the name of one that ships (`scratch-high.yaml`, `scratch-low.yaml`);
            None takes scratch-high.

    Raises:
        BadInputError: the file is missing, or a value is no number or out of its range.
    """
    return read_hyperparameters(path)[0]


def read_hyperparameters(
    path: Path | str | None, *, official_gains: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Return what `load_hyperparameters` does, and warnings of what a file has of other recipes.

    Args:
        path: as `load_hyperparameters` takes it.
        official_gains: take `GAINS` in place of what the file says of them.

    Raises:
        BadInputError: the file is missing, or a value is no number or out of its range.
    """
    values = _parse(_DEFAULT, _shipped(_DEFAULT))
    if path is None:
        return values, []
    found = _parse(str(path), _read(Path(path)), only=values)
    given = {name: value for name, value in found.items() if name in values}
    check_hyperparameters(given, source=str(path))
    warnings = []
    for name in found.keys() - values.keys():
        near = difflib.get_close_matches(name, values, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        warnings.append(f"{path}: {name} is no hyperparameter here and is passed over.{hint}")
    for name, official in GAINS.items():
        if (value := given.get(name, official)) != official:
            said = f"the official loss multiplies by {official:g} whatever the file says"
            warnings.append(
                f"{path}: {name} is {value:g}, but {official:g} is taken (--official-gains)."
                if official_gains
                else f"{path}: {name} is {value:g}, which counts here; {said}. "
                "--official-gains takes that."
            )
    return values | given | (GAINS if official_gains else {}), sorted(warnings)


def check_hyperparameters(values: dict[str, float], *, source: str) -> None:
    """Check that each value is in its range.

    Raises:
        BadInputError: a value is below 0, not finite, or above what it can be.
    """
    for name, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise BadInputError(f"{source}: {name} is {value}; give a number of 0 or more.")
        if name in _PROBABILITIES and value > 1:
            raise BadInputError(f"{source}: {name} is {value}; a probability is 0 to 1.")
        if name in _BELOW_ONE and value >= 1:
            raise BadInputError(f"{source}: {name} is {value}; give a number below 1.")


def _shipped(name: str) -> str:
    return (resources.files(__package__) / "hyp" / name).read_text(encoding="utf-8")


def _read(path: Path) -> str:
    path = in_checkout(path)
    if not is_there(path):
        shipped = sorted(item.name for item in (resources.files(__package__) / "hyp").iterdir())
        # The official files are called hyp.scratch-high.yaml.
        name = path.name.removeprefix("hyp.").removesuffix(".yaml") + ".yaml"
        if name in shipped:
            return _shipped(name)
        raise BadInputError(
            f"No hyperparameter file at {path}. Give a path, or one of {', '.join(shipped)}."
        )
    return Source(path=path, what="hyperparameters").text()


def _parse(source: str, text: str, only: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the file's numbers; of names that are not in `only`, whatever they hold, 0."""
    try:
        raw = parse_yaml(text)
    except NotYamlError as error:
        raise BadInputError(f"{source} is not readable as YAML: {error}.") from None
    if not isinstance(raw, dict):
        raise BadInputError(f"{source} holds no mapping of hyperparameters to numbers.")
    values: dict[str, float] = {}
    for name, value in raw.items():
        is_known = only is None or str(name) in only
        values[str(name)] = _number(source, str(name), value) if is_known else 0.0
    return values


def _number(source: str, name: str, value: object) -> float:
    # YAML 1.1 reads 1e-4 as text, because it has no decimal point.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise BadInputError(f"{source}: {name} is {brief(value)}, which is not a number.")
