"""Import of a user's checkout of the official repository, kept apart from everything else.

Its packages are called `models` and `utils`, as many are, and it imports libraries that only
plots, downloads and data sets use. Here they are imported under a path of their own; what the
import changes in the process (module table, search path, environment, number formats) is put back,
and a library that is not installed is stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import logging
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from memplan.errors import BadInputError

PACKAGES = ("models", "utils")
# Libraries that the checkout imports at its top and needs for plots, downloads and files only.
STOOD_IN = (
    "IPython",
    "albumentations",
    "cv2",
    "pandas",
    "pkg_resources",
    "psutil",
    "requests",
    "scipy",
    "seaborn",
    "tqdm",
    "ultralytics",
)
# Counts operations by running a deep copy of the model, which has no data here to copy.
_REFUSED = ("thop",)
_ENVIRONMENT = {"YOLOv5_AUTOINSTALL": "false", "YOLOv5_VERBOSE": "false"}


class _Inert:
    """Stands in for anything of a library that is not installed: does nothing, answers itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Inert()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType)
        return args[0] if decorates else _Inert()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()

    def __getitem__(self, key: Any) -> Any:
        return _Inert()

    def __bool__(self) -> bool:
        return False

    # Compared as a version that is recent enough.
    def __ge__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return True

    def __le__(self, other: object) -> bool:
        return False

    def __lt__(self, other: object) -> bool:
        return False


class _StandIn(types.ModuleType):
    """A module of a library that is not installed."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - as every package has

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Inert()


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the libraries of `STOOD_IN` for the checkout, after everyone else failed to."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self.made: set[str] = set()

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in STOOD_IN or not self._is_asked_for():
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def _is_asked_for(self) -> bool:
        """Return whether a file of the checkout imports; libraries handle what they miss."""
        frame = inspect.currentframe()
        while frame is not None and (
            frame.f_globals is globals() or "importlib" in frame.f_code.co_filename
        ):
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename.startswith(self._path)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        self.made.add(spec.name)
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run nothing."""


def _belongs(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


@contextlib.contextmanager
def _put_back(path: Path) -> Iterator[_StandIns]:
    """Make the checkout importable for a while, and leave the process as it was."""
    finder = _StandIns(path)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _belongs(name)}
    refused = {name: sys.modules.get(name) for name in _REFUSED}
    old_path, old_environment = list(sys.path), dict(os.environ)
    old_bytecode = sys.dont_write_bytecode
    try:
        sys.path.insert(0, str(path))
        sys.meta_path.append(finder)
        sys.dont_write_bytecode = True
        sys.modules.update(dict.fromkeys(_REFUSED))  # type: ignore[arg-type]  # None refuses
        os.environ.update(_ENVIRONMENT)
        with (
            tempfile.TemporaryDirectory() as settings,
            warnings.catch_warnings(),
            _number_formats(),
        ):
            os.environ["YOLOV5_CONFIG_DIR"] = settings
            warnings.simplefilter("ignore")
            yield finder
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = old_path
        sys.dont_write_bytecode = old_bytecode
        os.environ.clear()
        os.environ.update(old_environment)
        for name in list(sys.modules):
            if _belongs(name) or name in finder.made or name in _REFUSED:
                del sys.modules[name]
        sys.modules.update(hidden)
        sys.modules.update({name: module for name, module in refused.items() if module})


@contextlib.contextmanager
def _number_formats() -> Iterator[None]:
    """Put numpy's and PyTorch's ways to print numbers back."""
    import numpy as np
    import torch

    formats = np.get_printoptions()
    try:
        yield
    finally:
        np.set_printoptions(**formats)
        torch.set_printoptions(profile="default")  # type: ignore[no-untyped-call]


def import_checkout(path: Path, names: Sequence[str]) -> Mapping[str, types.ModuleType]:
    """Return modules of the checkout by name, imported afresh.

    Args:
        path: the checkout's folder.
        names: of modules, such as `models.yolo`.

    Raises:
        BadInputError: a module cannot be imported; the reason is given.
    """
    with _put_back(path):
        try:
            modules = {name: importlib.import_module(name) for name in names}
        except (Exception, SystemExit) as error:  # the user's files may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise BadInputError(
                f"{path} cannot be imported ({type(error).__name__}: {reason}). "
                "Install what it misses, or give another checkout."
            ) from error
    for module in modules.values():
        logger = getattr(module, "LOGGER", None)
        if isinstance(logger, logging.Logger):
            logger.setLevel(logging.ERROR)
    return modules
