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

_HERE = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(os.path.dirname(_HERE))


def _elsewhere():
    return [path for path in sys.path if os.path.abspath(path or ".") != _HERE]


def _run_hidden():
    """Run the `sitecustomize` that this one hides."""
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _elsewhere())
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds this memplan, and begins to watch when torch has been imported."""

    def find_spec(self, name, path, target=None):
        if name == "memplan":
            return importlib.util.spec_from_file_location(
                name, os.path.join(_PACKAGE, "__init__.py"), submodule_search_locations=[_PACKAGE]
            )
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        sys.meta_path.append(_Finder.only_memplan())
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _begin_after(spec.loader)
        return spec

    @staticmethod
    def only_memplan():
        finder = _Finder()
        finder.find_spec = lambda name, path, target=None: (
            _Finder.find_spec(finder, name, path, target) if name == "memplan" else None
        )
        return finder


def _begin_after(loader):
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        from memplan.recording.watch import begin

        begin()

    loader.exec_module = exec_module


if os.environ.get("MEMPLAN_RUN"):
    sys.meta_path.insert(0, _Finder())
_run_hidden()
