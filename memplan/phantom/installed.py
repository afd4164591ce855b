"""Which torch and cuDNN an interpreter has, found without loading them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from memplan.errors import BadInputError
from memplan.phantom.compile import SONAMES

# Source: cudnn_graph.h; CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR came with 9.8.
OLDEST_CUDNN = (9, 8)
_SECONDS = 60
# Start-up files of the interpreter may print, too.
_MARK = "memplan asks: "
# What another interpreter is asked; it may be any Python 3 and has no memplan.
_QUESTION = """\
import sys
sys.path[:] = [one for one in sys.path if one]  # the script's modules are not asked
import importlib.metadata as metadata, importlib.util as util, json
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
spec = util.find_spec("torch")
print(MARK + json.dumps([spec and spec.origin, [version(name) for name in PACKAGES]]))
"""


class _Found(NamedTuple):
    """Where torch's package is, and the version of each of cuDNN's packages."""

    torch: str | None
    cudnn: tuple[str | None, ...]


class Torch(NamedTuple):
    """The torch of an interpreter: its package, and the CUDA major it was built with."""

    folder: Path
    cuda_major: int


def cuda_major(interpreter: str | None = None) -> int:
    """Return the CUDA major version of the torch that an interpreter has; see `find_torch`."""
    return find_torch(interpreter).cuda_major


def find_torch(interpreter: str | None = None) -> Torch:
    """Return the torch that an interpreter has, having seen that a phantom card can carry it.

    Args:
        interpreter: the program; this one by default.

    Raises:
        BadInputError: it cannot be asked, has no torch, or one built without CUDA or with a CUDA
            that the phantom has no runtime for, or a cuDNN wheel older than 9.8.
    """
    found = _other(interpreter) if interpreter else _here()
    where = f"of {interpreter}" if interpreter else "installed"
    if found.torch is None:
        raise BadInputError(
            f"No torch is installed for {interpreter or 'this Python'}: install it, such as "
            "pip install torch."
        )
    major = _major(found.torch, where)
    version = dict(zip(SONAMES, found.cudnn, strict=True))[major]
    if version is not None:  # else not from a wheel: the runtime says so if it is too old
        _check_cudnn(version, major)
    return Torch(Path(found.torch).parent, major)


def _packages() -> list[str]:
    return [f"nvidia-cudnn-cu{major}" for major in SONAMES]


def _here() -> _Found:
    spec = importlib.util.find_spec("torch")
    return _Found(spec.origin if spec else None, tuple(_version(name) for name in _packages()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _other(interpreter: str) -> _Found:
    question = _QUESTION.replace("PACKAGES", repr(_packages())).replace("MARK", repr(_MARK))
    try:
        done = subprocess.run(  # noqa: S603 (the user's own interpreter)
            [interpreter, "-c", question],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
        torch, versions = json.loads(done.stdout.rpartition(_MARK)[2])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise _unasked(interpreter, last) from None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _unasked(interpreter, type(error).__name__) from None
    return _Found(torch, tuple(versions))


def _unasked(interpreter: str, reason: str) -> BadInputError:
    return BadInputError(
        f"{interpreter} cannot be asked for its torch ({reason}). Name a Python that starts."
    )


def _major(torch: str, where: str) -> int:
    text = (Path(torch).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*=\s*['\"](\d+)\.", text, re.MULTILINE)
    if found is None:
        raise BadInputError(
            f"The torch {where} was built without CUDA, and a phantom card needs a CUDA build: "
            "install torch from PyPI on Linux."
        )
    major = int(found.group(1))
    if major not in SONAMES:
        known = " and ".join(str(one) for one in SONAMES)
        raise BadInputError(
            f"The torch {where} was built with CUDA {major}; the phantom card has runtimes for "
            f"CUDA {known}. Install a torch built with one of these."
        )
    return major


def _check_cudnn(version: str, major: int) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_CUDNN:
        raise BadInputError(
            f"cuDNN {version} cannot plan for a card described in words; "
            f"{'.'.join(map(str, OLDEST_CUDNN))} and newer can. Install one beside this torch: "
            f"pip install --upgrade nvidia-cudnn-cu{major}."
        )
