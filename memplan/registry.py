"""Workloads by the names users type; the tool itself knows no model.

A name may be code: `package.module:name` imports a module and `official:PATH` runs a folder. So a
name that somebody typed and a name that stood in a file are two things here: a `SavedName` makes
registered workloads only, whatever the file says. Every reader of a file hands on its names so.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from memplan.acceptance import check_arguments, check_object, taken_by
from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.files import is_there
from memplan.files.yaml_text import NotYamlError, parse_yaml
from memplan.workload import Workload

GROUP = "memplan.workloads"


PLAIN = "NAMES_ARE_PLAIN"
"""What the module of a family sets to True whose `family:name` runs no code of the user's, and so
may stand in files: `torchvision:resnet50`."""


@dataclass(frozen=True)
class SavedName:
    """A workload's name as a file has it, which is no reason to run anything.

    Raises:
        BadInputError: the file has no name there, or one that runs code, which only a person types.
    """

    text: str
    source: str
    """The file, as the user named it."""
    option: str = "--workload"
    """What the user would type the name after."""

    def __post_init__(self) -> None:
        """Refuse what is no name, and what would run code."""
        if not isinstance(self.text, str) or not 0 < len(self.text) <= _LONGEST_NAME:
            raise BadInputError(
                f"{self.source} does not say by a name what was trained. "
                f"Give it: {self.option} NAME."
            )
        if runs_code(self.text):
            raise BadInputError(
                f"{self.source} was made with {self.option} {self.text!r}, which runs code of its "
                f"own, so a file cannot choose it. If you trust that code, type it: {self.option} "
                f"{shlex.quote(self.text) if self.text.isprintable() else 'NAME'}."
            )


_LONGEST_NAME = 1000


def runs_code(name: str) -> bool:
    """Return whether making the workload of a name would run code that is not installed for it."""
    family, colon, rest = name.partition(":")
    if not colon:
        return False
    factory = _factories().get(family)
    is_plain = factory is not None and getattr(inspect.getmodule(factory), PLAIN, False) is True
    return not (is_plain and _PLAIN_NAME.fullmatch(rest))


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")


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
            settings[key] = parse_yaml(text) if text else ""
        except NotYamlError:
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


def _found(name: str) -> tuple[Callable[..., Workload] | Workload, frozenset[str] | None]:
    """Return what makes the workload of a name, and the arguments it takes; None for any."""
    factories = _factories()
    family, colon, rest = name.partition(":")
    if colon and family in factories:
        return _of_family(factories[family], rest)
    if colon:
        return _own(name)
    known = {known: factory for factory in factories.values() for known in _names(factory)}
    stem = Path(name).stem
    is_file = Path(name).suffix in {".yaml", ".yml"}
    if name in known:
        return _of_family(known[name], name)
    if is_file and not is_there(Path(name)) and stem in known:
        # The official recipe names its configurations by paths inside its own checkout.
        return _of_family(known[stem], stem)
    if is_file and factories:
        return _of_family(next(iter(known.values())), name)
    raise UnknownNameError(
        "workload",
        name,
        known,
        "Or give torchvision:NAME, official:PATH, PATH.yaml or package.module:name.",
    )


def _of_family(
    factory: Callable[..., Workload], name: str
) -> tuple[Callable[..., Workload], frozenset[str] | None]:
    """Return a family's factory for a name; its module may say in `made_by` what it makes."""
    made_by = getattr(inspect.getmodule(factory), "made_by", lambda _: factory)
    return functools.partial(factory, name), taken_by(made_by(name), of_family=True)


def _own(name: str) -> tuple[Callable[..., Workload] | Workload, frozenset[str] | None]:
    maker = _imported(name)
    if isinstance(maker, Workload):
        return maker, frozenset()
    if not callable(maker):
        raise BadInputError(
            f"--workload {name!r} is neither a Workload nor a function that makes one."
        )
    return maker, taken_by(maker)


def takes(name: str | SavedName, argument: str) -> bool:
    """Return whether a workload can be made with an argument of a name, such as `image_size`.

    Raises:
        UnknownNameError: no such workload.
        BadInputError: its module cannot be imported.
    """
    taken = _found(name.text if isinstance(name, SavedName) else name)[1]
    return taken is None or argument in taken


def make_workload(name: str | SavedName, arguments: Mapping[str, Any] | None = None) -> Workload:
    """Return the workload that a name stands for.

    Args:
        name: as a person typed it, or a `SavedName` where it was read from a file: a name or file
            that a registered family knows (`yolov9-s`, `PATH.yaml`), `family:name`
            (`torchvision:resnet50`, `official:PATH` of a checkout), or `package.module:name` of an
            object, class or function of the user's own.
        arguments: keyword arguments for the factory; those it does not take are refused.

    Raises:
        UnknownNameError: no such workload; the nearest is suggested.
        UsageError: the factory does not take an argument, or refuses its value.
        BadInputError: the module cannot be imported or gives something else.
    """
    arguments = dict(arguments or {})
    name = name.text if isinstance(name, SavedName) else name
    maker, taken = _found(name)
    if isinstance(maker, Workload):
        check_object(name, arguments)
        return maker
    check_arguments(name, taken, arguments)
    return _built(name, maker, arguments)
