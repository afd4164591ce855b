"""Workloads by the names users type; the tool itself knows no model."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.workload import Workload

GROUP = "memplan.workloads"


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Return keyword arguments from `KEY=VALUE` texts, values read as YAML scalars.

    Raises:
        UsageError: a text has no `=`, or no name before it.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {pair!r} is not KEY=VALUE, such as num_classes=10.")
        try:
            settings[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise UsageError(
                f"--set {pair!r} has a value that YAML cannot read. Quote it, such as "
                "name='\"a, b\"'."
            ) from None
    return settings


def _factories() -> dict[str, Callable[..., Workload]]:
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def _names(factory: Callable[..., Workload]) -> list[str]:
    listing = getattr(inspect.getmodule(factory), "names", None)
    return list(listing()) if listing is not None else []


def imported_by_families() -> list[str]:
    """Return the modules that the registered families import: their own, and those of first use.

    A family's module names the latter in `imported_when_used`.
    """
    modules = [inspect.getmodule(factory) for factory in _factories().values()]
    return [
        name
        for module in modules
        if module is not None
        for name in (module.__name__, *getattr(module, "imported_when_used", ()))
    ]


def _imported(name: str) -> Any:
    """Return the object that `package.module:name` names; the working directory is searched too."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's own module may raise anything while it loads
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInputError(
            f"--workload {name!r} cannot be imported ({reason}). Give package.module:name, from "
            "the folder it is found in."
        ) from error
    if not hasattr(module, attribute):
        raise UnknownNameError(f"name in module {module_name}", attribute, dir(module))
    return getattr(module, attribute)


def _built(name: str, maker: Any, arguments: Mapping[str, Any]) -> Workload:
    if isinstance(maker, Workload):
        if arguments:
            raise UsageError(f"--workload {name!r} is an object, so --set cannot change it.")
        return maker
    if not callable(maker):
        raise BadInputError(
            f"--workload {name!r} is neither a Workload nor a function that makes one."
        )
    accepted = inspect.signature(maker).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    unknown = [key for key in arguments if key not in accepted and not takes_any]
    if unknown:
        raise UsageError(
            f"--workload {name!r} takes no {unknown[0]!r}. "
            f"It takes: {', '.join(accepted) or 'nothing'}."
        )
    try:
        workload = maker(**arguments)
    except TypeError as error:
        raise UsageError(f"--workload {name!r} cannot be made so: {error}.") from error
    if not isinstance(workload, Workload):
        raise BadInputError(
            f"--workload {name!r} gave a {type(workload).__name__}, "
            "not a memplan.workload.Workload."
        )
    return workload


def make_workload(name: str, arguments: Mapping[str, Any] | None = None) -> Workload:
    """Return the workload that a name stands for.

    Args:
        name: a name or file that a registered family knows (`yolov9-s`, `PATH.yaml`),
            `family:name` (`torchvision:resnet50`, `official:PATH` of a checkout), or
            `package.module:name` of an object, class or function of the user's own.
        arguments: keyword arguments for the factory; those it does not take are refused.

    Raises:
        UnknownNameError: no such workload; the nearest is suggested.
        UsageError: the factory does not take an argument, or refuses its value.
        BadInputError: the module cannot be imported or gives something else.
    """
    arguments = dict(arguments or {})
    factories = _factories()
    family, colon, rest = name.partition(":")
    if colon and family in factories:
        return factories[family](rest, **arguments)
    if colon:
        return _built(name, _imported(name), arguments)
    known = {known: factory for factory in factories.values() for known in _names(factory)}
    stem = Path(name).stem
    is_file = Path(name).suffix in {".yaml", ".yml"}
    if name in known:
        return known[name](name, **arguments)
    if is_file and not Path(name).exists() and stem in known:
        # The official recipe names its configurations by paths inside its own checkout.
        return known[stem](stem, **arguments)
    if is_file and factories:
        return next(iter(known.values()))(name, **arguments)
    raise UnknownNameError(
        "workload",
        name,
        known,
        "Or give torchvision:NAME, official:PATH, PATH.yaml or package.module:name.",
    )
