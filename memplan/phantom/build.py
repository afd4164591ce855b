"""The phantom's libraries: found in the installed wheel, or compiled once into a cache.

The libraries are compiled when the package is built. In a checkout, where nothing was built,
`library_folder` compiles them with gcc into the user's cache (`XDG_CACHE_HOME`), in a folder named
by a hash of the sources and the compiler, so that a changed source makes a new one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from memplan.errors import BadInputError, MemplanError

SUPPORTED_CUDA_MAJORS = (13,)
_HERE = Path(__file__).parent
_SOURCES = _HERE / "src"
_FLAGS = "-O2 -g -Wall -Wextra -Wno-format-truncation -Wno-misleading-indentation -fPIC -shared"


def cuda_major() -> int:
    """Return the CUDA major version that the installed torch was built with, without loading it.

    Raises:
        BadInputError: there is no torch, it was built without CUDA, or with a CUDA that the
            phantom has no runtime for.
    """
    text = _torch_version_file()
    found = re.search(r"^cuda\b.*=\s*'(\d+)\.", text, re.MULTILINE)
    if found is None:
        raise BadInputError(
            "The installed torch was built without CUDA, and the phantom card needs a CUDA build: "
            "install torch from PyPI on Linux."
        )
    major = int(found.group(1))
    if major not in SUPPORTED_CUDA_MAJORS:
        known = " and ".join(str(one) for one in SUPPORTED_CUDA_MAJORS)
        raise BadInputError(
            f"The installed torch was built with CUDA {major}; the phantom card has runtimes for "
            f"CUDA {known}. Install a torch built with one of these."
        )
    return major


def _torch_version_file() -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BadInputError("No torch is installed here: install it, such as pip install torch.")
    return (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")


@functools.cache
def library_folder() -> Path:
    """Return the folder with the phantom's libraries for the installed torch's CUDA major.

    Raises:
        BadInputError: there is no such runtime for the installed torch.
        MemplanError: they must be compiled here and cannot be.
    """
    name = f"cuda{cuda_major()}"
    built = _HERE / "lib" / name
    if built.is_dir():
        return built
    folder = _cache() / f"phantom-{_key()}" / name
    if not folder.is_dir():
        _compile_into(folder)
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "memplan"


def _key() -> str:
    digest = hashlib.sha256(_FLAGS.encode())
    for path in sorted(path for path in _SOURCES.rglob("*") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(_compiler_version().encode())
    return digest.hexdigest()[:16]


def _compiler_version() -> str:
    if shutil.which("gcc") is None:
        raise MemplanError(
            "The phantom card's libraries are not built here and there is no gcc to build them: "
            "install memplan from a wheel, or install gcc (apt-get install gcc)."
        )
    done = subprocess.run(
        ["gcc", "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True, check=True
    )
    return done.stdout


def _compile_into(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        compile_libraries(made)
        try:
            made.rename(folder)
        except OSError:
            # Another process was first; its libraries are as good.
            if not folder.is_dir():
                raise


def compile_libraries(out: Path) -> None:
    """Compile the phantom's libraries into a new folder."""
    (out / "torch_only").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        shutil.copytree(_SOURCES, work, dirs_exist_ok=True)
        for script, target in (("gen_rest.py", "cudart_rest.c"), ("gen_blas.py", "blas_rest.c")):
            text = subprocess.run(
                [sys.executable, script], cwd=work, capture_output=True, text=True, check=True
            ).stdout
            (work / target).write_text(text)
        site = Path(importlib.util.find_spec("torch").origin).parents[1]
        include = [
            f"-I{site}/nvidia/cudnn/include",
            f"-I{site}/nvidia/cu13/include",
            f"-I{site}/triton/backends/nvidia/include",
            "-Iinclude",
        ]
        base = ["gcc", *_FLAGS.split(), *include]
        rt = [f"-L{out}", "-l:libcudart.so.13"]
        for command in (
            [
                *base,
                "cudart.c",
                "cudart_rest.c",
                "-Wl,-soname,libcudart.so.13",
                "-Wl,--version-script=cudart.map",
                "-o",
                f"{out}/libcudart.so.13",
                "-lpthread",
            ],
            [*base, "cuda.c", "cuda_cudnn.c", "-o", f"{out}/torch_only/libcuda.so.1", *rt],
            [
                *base,
                "math.c",
                "math_nothing.c",
                "fft.c",
                "loader.c",
                "blas_rest.c",
                "-o",
                f"{out}/libphantom_math.so",
                *rt,
                "-ldl",
            ],
            [*base, "nvrtc.c", "-o", f"{out}/torch_only/libnvrtc.so.13"],
        ):
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MemplanError(
                    f"gcc cannot compile the phantom's libraries: {done.stderr.strip().splitlines()[0]}"
                )
