"""The phantom's libraries: found in the installed wheel, or compiled once into a cache.

A wheel carries the libraries. In a checkout, where nothing was built, `library_folder` compiles
them with gcc into the user's cache (`XDG_CACHE_HOME`), in a folder named by a hash of sources and
compiler, so that a changed source makes a new one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from memplan.errors import BadInputError, MemplanError
from memplan.phantom.compile import FLAGS, SONAMES, SOURCES, CompileError, compile_libraries

# Source: cudnn_graph.h; CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR came with 9.8.
OLDEST_CUDNN = (9, 8)
_BUILT = Path(__file__).parent / "lib"


def cuda_major() -> int:
    """Return the CUDA major version that the installed torch was built with, without loading it.

    Raises:
        BadInputError: there is no torch, it was built without CUDA, or with a CUDA that the
            phantom has no runtime for.
    """
    found = re.search(r"^cuda\b.*=\s*['\"](\d+)\.", _torch_version_file(), re.MULTILINE)
    if found is None:
        raise BadInputError(
            "The installed torch was built without CUDA, and a phantom card needs a CUDA build: "
            "install torch from PyPI on Linux."
        )
    major = int(found.group(1))
    if major not in SONAMES:
        known = " and ".join(str(one) for one in SONAMES)
        raise BadInputError(
            f"The installed torch was built with CUDA {major}; the phantom card has runtimes for "
            f"CUDA {known}. Install a torch built with one of these."
        )
    return major


def check_cudnn(major: int) -> None:
    """Refuse a cuDNN that cannot plan for a card described in words, where its version is known.

    Raises:
        BadInputError: the installed wheel is older than 9.8.
    """
    package = f"nvidia-cudnn-cu{major}"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return  # not from a wheel: the runtime itself says so if it is too old
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_CUDNN:
        raise BadInputError(
            f"cuDNN {version} cannot plan for a card described in words; "
            f"{'.'.join(map(str, OLDEST_CUDNN))} and newer can. Install one beside this torch: "
            f"pip install --upgrade {package}."
        )


def _torch_version_file() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BadInputError("No torch is installed here: install it, such as pip install torch.")
    return (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")


def library_folder() -> Path:
    """Return the folder with the phantom's libraries for the installed torch's CUDA major.

    Raises:
        BadInputError: there is no such runtime for the installed torch.
        MemplanError: they must be compiled here and cannot be.
    """
    return _folder(cuda_major())


@functools.cache
def _folder(major: int) -> Path:
    built = _BUILT / f"cuda{major}"
    if built.is_dir():
        return built
    folder = _cache() / f"phantom-{_key()}" / f"cuda{major}"
    if not folder.is_dir():
        _compile_into(folder, major)
    return folder


def _cache() -> Path:
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
            compile_libraries(made, major)
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
