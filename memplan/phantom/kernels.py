"""Registers and shared memory of PyTorch's kernels, for the phantom's occupancy.

They are what NVIDIA's documented tool says (`cuobjdump --dump-resource-usage`, which Triton's wheel
brings), of the binary that a card would run. It takes some 5 s for a build of torch and an
architecture, once: the table is kept in memplan's cache.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from memplan.device.card import Card
from memplan.errors import MemplanError
from memplan.phantom.build import cache_folder

# Architectures in torch's wheels, by CUDA major; as in src/occupancy.c.
BUILT_FOR = {12: (50, 60, 70, 75, 80, 86, 90, 100, 120), 13: (75, 80, 86, 90, 100, 120)}
_SECONDS = 300
_KERNEL = re.compile(r"Function (\S+?):?\n\s+REG:(\d+) STACK:\d+ SHARED:(\d+)")
_RECORD = struct.Struct("<QII")


def table(card: Card, torch: Path, major: int) -> Path:
    """Return the file with every kernel's registers and static shared memory on a card.

    Args:
        card: what runs them.
        torch: torch's package, whose `lib/libtorch_cuda.so` holds them.
        major: the CUDA major it was built with.

    Raises:
        MemplanError: there is no cuobjdump, or it does not read the library.
    """
    capability = 10 * card.compute_capability[0] + card.compute_capability[1]
    architecture = max(
        one for one in BUILT_FOR[major] if one <= max(capability, BUILT_FOR[major][0])
    )
    library = torch / "lib" / "libtorch_cuda.so"
    about = library.stat()
    name = f"kernels-{about.st_size:x}-{about.st_mtime_ns:x}-sm{architecture}"
    path = cache_folder() / name
    if not path.exists():
        records = b"".join(_records(_usage(library, architecture)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(records)
        Path(file.name).replace(path)
    return path


def _usage(library: Path, architecture: int) -> str:
    command = [_cuobjdump(), "-arch", f"sm_{architecture}", "--dump-resource-usage", str(library)]
    try:
        done = subprocess.run(  # noqa: S603 (NVIDIA's tool on torch's library)
            command, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MemplanError(
            f"cuobjdump does not read {library} for sm_{architecture} ({type(error).__name__}). "
            "Run without exact occupancy: the scratch of counting nonzero elements may differ by "
            "some KiB."
        ) from None
    return done.stdout


def _cuobjdump() -> str:
    """Return the tool: Triton's, else the one on the path."""
    spec = importlib.util.find_spec("triton")
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        tool = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.exists():
            return str(tool)
    found = shutil.which("cuobjdump")
    if found is None:
        raise MemplanError(
            "Exact occupancy needs cuobjdump, which Triton's wheel brings: pip install triton."
        )
    return found


def _records(text: str) -> Iterator[bytes]:
    """Yield what src/occupancy.c reads: hash of the name, registers, bytes; by hash."""
    usage = {
        _hash(name): (int(registers), int(shared))
        for name, registers, shared in _KERNEL.findall(text)
    }
    for key in sorted(usage):
        yield _RECORD.pack(key, *usage[key])


def _hash(name: str) -> int:
    """FNV-1a of 64 bits. Source: Fowler, Noll and Vo, draft-eastlake-fnv."""
    value = 14695981039346656037
    for byte in name.encode():
        value = ((value ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return value
