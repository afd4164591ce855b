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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from memplan.acceptance import check_arguments, check_object, taken_by
from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.family import Family
from memplan.files import Source, in_checkout, is_there
from memplan.files.yaml_text import NotYamlError, parse_yaml
from memplan.workload import Workload

GROUP = "memplan.workloads"


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
    known = families().get(family)
    is_plain = known is not None and known.names_are_plain is True
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


def families() -> dict[str, Family]:
    """Return the registered families by the names of their entry points, sorted.

    Raises:
        BadInputError: an entry point names nothing that is a family, or two have one name.
    """
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if points.setdefault(point.name, point).value != point.value:
            raise BadInputError(
                f"Two installed packages register the family {point.name!r}. Uninstall one of them."
            )
    return {name: _loaded(point) for name, point in points.items()}


class _Factory(Family):
    """A function registered alone: it makes `family:name`, lists no names and reads no files."""

    def __init__(self, function: Callable[..., Workload]) -> None:
        self._function = function
        self.imported_when_used = (function.__module__,)

    def made_by(self, name: str) -> Callable[..., Workload]:
        """Return the function."""
        del name
        return self._function

    def make(self, name: str, **arguments: Any) -> Workload:
        """Return what the function makes."""
        return self._function(name, **arguments)


def _loaded(point: EntryPoint) -> Family:
    """Return what an entry point names, checked."""
    try:
        family = point.load()
    except Exception as error:  # another package's module may raise anything while it loads
        raise BadInputError(
            f"The family {point.name!r} ({point.value}) cannot be loaded ({_reason(error)}). "
            "Install its package again, or uninstall it."
        ) from error
    if inspect.isfunction(family):
        return _Factory(family)
    if isinstance(family, type) or not isinstance(family, Family):
        missing = [name for name in _MEMBERS if not hasattr(family, name)]
        lacks = f"it has no {', '.join(missing)}" if missing else "it is a class, not an object"
        raise BadInputError(
            f"The family {point.name!r} ({point.value}) is no memplan.family.Family: {lacks}. "
            "Name an object of a class that subclasses Family, or uninstall its package."
        )
    return family


_MEMBERS = ("names", "reads", "make", "made_by", "names_are_plain", "imported_when_used")


def imported_by_families() -> list[str]:
    """Return the modules that the registered families import: their own, and those of first use."""
    return [
        name
        for family in families().values()
        for name in (type(family).__module__, *family.imported_when_used)
    ]


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _imported(name: str) -> Any:
    """Return the object that `package.module:name` names; the working directory is searched too."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's own module may raise anything while it loads
        raise BadInputError(
            f"--workload {name!r} cannot be imported ({_reason(error)}). Give package.module:name, "
            "from the folder it is found in."
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
    registered = families()
    prefix, colon, rest = name.partition(":")
    if colon and prefix in registered:
        return _of_family(registered[prefix], rest)
    if colon:
        return _own(name)
    known = {key: list(one.names()) for key, one in registered.items()}
    is_path = Path(name).suffix in {".yaml", ".yml"}
    if is_path and is_there(file := in_checkout(Path(name))):
        readers = [key for key, one in registered.items() if _reads(one, file)]
        return _of_family(_only(readers, registered, "file", name), str(file))
    # The official recipe names its configurations by paths inside its own checkout.
    stem = Path(name).stem if is_path else name
    for one in (name, stem):
        listing = [key for key, names in known.items() if one in names]
        if listing:
            return _of_family(_only(listing, registered, "name", one), one)
    raise UnknownNameError(
        "workload",
        name,
        [one for names in known.values() for one in names],
        "Or give torchvision:NAME, official:PATH, PATH.yaml or package.module:name.",
    )


def _reads(family: Family, path: Path) -> bool:
    """Return whether a family reads a file, which is known to be bounded YAML."""
    Source(path=path, what="a model's description").yaml()
    return family.reads(path)


def _only(keys: Sequence[str], registered: Mapping[str, Family], kind: str, name: str) -> Family:
    """Return the one family that a name or file is of.

    Raises:
        BadInputError: there is none, or several.
    """
    if len(keys) == 1:
        return registered[keys[0]]
    shown = shlex.quote(name) if name.isprintable() else "PATH"
    if keys:
        ways = " or ".join(f"--workload {key}:{shown}" for key in keys)
        raise BadInputError(
            f"The {kind} {name!r} is of several families: {', '.join(keys)}. Say which: {ways}."
        )
    raise BadInputError(
        f"No model family reads {name!r} (installed: {', '.join(registered) or 'none'}). Correct "
        f"the file, or say which family it is for: --workload FAMILY:{shown}."
    )


def _of_family(family: Family, name: str) -> tuple[Callable[..., Workload], frozenset[str] | None]:
    """Return what makes a family's workload of a name, and the arguments it takes."""
    made_by = family.made_by(name)
    return functools.partial(family.make, name), taken_by(made_by, of_family=True)


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


def stride_of(name: str | SavedName) -> int:
    """Return what a workload's image size must be a multiple of, pixels; 1 where it does not say.

    Raises:
        UnknownNameError: no such workload.
    """
    maker = _found(name.text if isinstance(name, SavedName) else name)[0]
    if not isinstance(maker, functools.partial):
        return 1
    family: Family = maker.func.__self__  # type: ignore[attr-defined]  # as `_of_family` made it
    return int(getattr(family.made_by(maker.args[0]), "stride", 1))


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
