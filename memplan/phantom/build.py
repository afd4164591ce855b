"""The phantom's libraries: found in the installed wheel, or compiled once into a cache.

A wheel carries the libraries. In a checkout, where nothing was built, `library_folder` compiles
them with gcc into the user's cache (`XDG_CACHE_HOME`), in a folder named by a hash of sources and
compiler, so that a changed source makes a new one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from memplan.errors import MemplanError
from memplan.phantom.compile import FLAGS, NESTED, SOURCES, CompileError, compile_libraries
from memplan.phantom.installed import cuda_major

_BUILT = Path(__file__).parent / "lib"


def library_folder(major: int | None = None) -> Path:
    """Return the folder with the phantom's libraries for a CUDA major version.

    Args:
        major: 12 or 13; that of the installed torch by default.

    Raises:
        BadInputError: there is no such runtime for the installed torch.
        MemplanError: they must be compiled here and cannot be.
    """
    return _folder(cuda_major() if major is None else major)


@functools.cache
def _folder(major: int) -> Path:
    built = _BUILT / f"cuda{major}"
    if built.is_dir():
        return built / NESTED
    folder = cache_folder() / f"phantom-{_key()}" / f"cuda{major}"
    if not folder.is_dir():
        _compile_into(folder, major)
    return folder / NESTED


def cache_folder() -> Path:
    """Return memplan's folder for what can be made again, in `XDG_CACHE_HOME` or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "memplan"


def _key() -> str:
    """Return a hash of everything that the libraries are made from."""
    digest = hashlib.sha256(" ".join(FLAGS).encode() + _compiler().encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(Path(__file__).with_name("compile.py").read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> str:
    if shutil.which("gcc") is None:
        raise _cannot_build("there is no gcc")
    command = ["gcc", "-dumpfullversion", "-dumpmachine"]
    done = subprocess.run(  # noqa: S603 (our own command)
        command, capture_output=True, text=True, check=False
    )
    return done.stdout


def _compile_into(folder: Path, major: int) -> None:
    """Compile beside the folder, then rename: nobody sees half of it, and the first one wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            compile_libraries(made / NESTED, major)
            _move(made, folder)
    except CompileError as error:
        raise _cannot_build(str(error)) from None
    except OSError as error:
        raise MemplanError(
            f"The phantom card's libraries cannot be written to {folder.parent} ({error.strerror})."
            " Set XDG_CACHE_HOME to a folder that can be written."
        ) from None


def _move(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _cannot_build(reason: str) -> MemplanError:
    return MemplanError(
        f"The phantom card's libraries must be compiled here, and {reason}. Install gcc "
        "(apt-get install gcc), or memplan from a wheel, which brings them."
    )
