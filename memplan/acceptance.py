"""What a workload takes of the options that users type, told and checked in one place.

A workload declares it: what its factory takes as arguments, and its class attribute `data_options`.
Whatever else is asked of it is refused by the option's name; see `memplan.spec` for how steps run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError, UsageError
from memplan.files import is_file

if TYPE_CHECKING:
    from memplan.workload import Workload

OPTIONS = {
    "image_size": "--img",
    "validation_batch_size": "--val-batch",
    "multi_scale": "--multi-scale",
    "objects_per_image": "--objects-per-image",
    "cfg": "--cfg",
    "blocks": "--blocks",
    "hyp": "--hyp",
    "official_gains": "--official-gains",
    "quad": "--quad",
}
"""Options that are a factory's arguments, by the argument; `--set` gives any other."""

DATA_OPTIONS = {
    "cache": "--cache",
    "rect": "--rect",
    "image_weights": "--image-weights",
    "single_class": "--single-cls",
    "min_items": "--min-items",
}
"""Options of reading data, by what `Workload.data_options` calls them."""


def taken_by(maker: Callable[..., Any], *, of_family: bool = False) -> frozenset[str] | None:
    """Return the arguments that a factory or class takes by name; None where it takes any.

    Args:
        maker: what makes the workload.
        of_family: whether its first parameter is the name, given by its place.
    """
    parameters = list(inspect.signature(maker).parameters.values())[1 if of_family else 0 :]
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return None
    by_name = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return frozenset(one.name for one in parameters if one.kind in by_name)


def check_arguments(name: str, taken: frozenset[str] | None, arguments: Iterable[str]) -> None:
    """Refuse arguments that a workload's factory does not take, by the options they came from.

    Args:
        name: the workload's, as the user typed it.
        taken: as `taken_by` returns it.
        arguments: those given, by name.

    Raises:
        UsageError: one is not taken.
    """
    for key in arguments:
        if taken is None or key in taken:
            continue
        option = OPTIONS.get(key, f"--set {key}")
        listed = ", ".join(sorted(taken)) or "nothing"
        raise UsageError(
            f"{option}: workload {name!r} takes no {key!r}. It takes: {listed}. Leave out {option}."
        )


def check_object(name: str, arguments: Iterable[str]) -> None:
    """Refuse arguments for a workload that is made already.

    Raises:
        UsageError: there is one.
    """
    for key in arguments:
        option = OPTIONS.get(key, "--set")
        raise UsageError(
            f"{option}: workload {name!r} is an object, so {option} cannot change it. "
            f"Make it with that {key}, or name a function that does."
        )


_OFFICIAL_WEIGHTS = re.compile(r"(?:yolov9|gelan)-[a-z]+(?:-[a-z]+)?\.pt")
_RELEASES = "https://github.com/WongKinYiu/yolov9/releases"


def check_weights(path: Path) -> None:
    """Refuse weights that are not there; of the official files, say where they are.

    Raises:
        BadInputError: there is no such file.
    """
    if is_file(path):
        return
    way_out = "Check the path."
    if _OFFICIAL_WEIGHTS.fullmatch(path.name):
        way_out = f"memplan downloads nothing: the official weights are at {_RELEASES}."
    raise BadInputError(f"No weights at {path}. {way_out}")


def check_data(workload: Workload, given: Mapping[str, Any]) -> None:
    """Refuse options of reading data that a workload's data does not know.

    Args:
        workload: reads the data.
        given: values by the names of `DATA_OPTIONS`; an empty one is not given.

    Raises:
        UsageError: one is given that is not known.
    """
    for key, value in given.items():
        if value and key not in workload.data_options:
            option = DATA_OPTIONS[key]
            raise UsageError(
                f"{option}: the data of workload {workload.name!r} does not know it. Leave it "
                "out, or name it in the workload's data_options."
            )
