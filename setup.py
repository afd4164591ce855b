"""Compile the phantom card's libraries into a wheel; everything else is in setup.cfg."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

IS_LINUX = sys.platform.startswith("linux")
COMPILER = Path(__file__).parent / "memplan" / "phantom" / "compile.py"


def _compiler() -> ModuleType:
    """Load the one file that compiles: importing memplan needs what it depends on."""
    spec = importlib.util.spec_from_file_location("phantom_compile", COMPILER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up while it is made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildWithLibraries(build_py):
    """Build the Python files, then the libraries of every CUDA major beside them.

    An editable install has none: they are compiled when they are first needed, into a cache.
    """

    def run(self) -> None:
        """Build; end with one line where gcc is missing or refuses."""
        super().run()
        if self.editable_mode or not IS_LINUX:
            return
        compiler = _compiler()
        for major in compiler.SONAMES:
            folder = Path(self.build_lib) / "memplan" / "phantom" / "lib" / f"cuda{major}"
            out = folder / compiler.NESTED
            if out.is_dir():
                continue
            try:
                compiler.compile_libraries(out, major)
            except compiler.CompileError as error:
                raise SystemExit(
                    f"The phantom card's libraries cannot be built: {error}. Building memplan "
                    "needs gcc (apt-get install gcc); installing it from a wheel does not."
                ) from None


class PlatformDistribution(Distribution):
    """A distribution that is not the same on every machine."""

    def has_ext_modules(self) -> bool:
        """Say that there is more than Python in it, though no extension module."""
        return IS_LINUX


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this kind of machine, for its libraries are the machine's."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: the libraries know nothing of Python."""
        platform = super().get_tag()[2]
        return "py3", "none", platform if IS_LINUX else "any"


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel},
)
