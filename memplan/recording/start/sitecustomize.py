"""Found by Python at start-up because `memplan run` put this folder on PYTHONPATH.

Arranges that the process is watched from the moment it imports torch. A `sitecustomize` of the
user's own, which this one hides, is run as ever. memplan itself need not be installed in the
interpreter that runs the script: the package is found beside this file.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(os.path.dirname(_HERE))


def _elsewhere() -> list[str]:
    return [path for path in sys.path if os.path.abspath(path or ".") != _HERE]


def _run_hidden() -> None:
    """Run the `sitecustomize` that this one hides."""
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _elsewhere())
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


class _MemplanFinder(importlib.abc.MetaPathFinder):
    """Finds this memplan."""

    def find_spec(
        self, name: str, _path: object, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "memplan":
            return None
        return importlib.util.spec_from_file_location(
            name, os.path.join(_PACKAGE, "__init__.py"), submodule_search_locations=[_PACKAGE]
        )


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Lets the process be watched once torch has been imported."""

    def find_spec(
        self, name: str, _path: object, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _begin_after(spec.loader)
        return spec


def _begin_after(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        from memplan.recording.watch import begin

        begin()

    loader.exec_module = exec_module


if os.environ.get("MEMPLAN_RUN"):
    sys.meta_path[:0] = [_TorchFinder(), _MemplanFinder()]
_run_hidden()
