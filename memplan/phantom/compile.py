"""Compile the phantom's libraries with gcc. Standard library only: setup.py loads this file alone.

The sources declare what they need of NVIDIA's interfaces themselves, so gcc is enough: no CUDA
toolkit, no header package, and one source serves both CUDA majors. (The header packages that torch
brings are incomplete, and hold one major each.)
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
FLAGS = ("-std=gnu11", "-O2", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra")

# Where a CUDA major's libraries lie below its own folder. Torch for CUDA 12 opens the NVRTC that
# cuDNN needs only where its runtime has such a path, as NVIDIA's wheels give it.
# Source: torch/__init__.py, _load_global_deps (2.8).
NESTED = Path("nvidia", "cuda_runtime", "lib")

# The number at the end of each library's name, by CUDA major. Source: the wheels of CUDA 12.8 and
# 13.0 that torch 2.8 and 2.11 require.
SONAMES: dict[int, dict[str, int]] = {
    12: {
        "cudart": 12,
        "cublas": 12,
        "cublasLt": 12,
        "cusolver": 11,
        "cusparse": 12,
        "cufft": 11,
        "nccl": 2,
    },
    13: {
        "cudart": 13,
        "cublas": 13,
        "cublasLt": 13,
        "cusolver": 12,
        "cusparse": 12,
        "cufft": 12,
        "nccl": 2,
    },
}


class CompileError(Exception):
    """gcc is missing or refused; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One library: what it is made of and what it exports.

    `status` is what a function returns that is exported and not implemented; `exports` are the
    patterns of the version script; a library without a `node` carries no symbol versions, so that
    it can stand before a library of any.
    """

    name: str
    sources: tuple[str, ...]
    exports: tuple[str, ...]
    status: int
    node: bool = True
    folder: str = ""
    is_preloaded: bool = True

    def file(self, major: int) -> str:
        """Return the file's name, which is also its soname."""
        number = {**SONAMES[major], "nvidia-ml": 1}.get(self.name)
        return f"lib{self.name}.so.{number}" if number else f"lib{self.name}.so"


RUNTIME = Library(
    name="cudart",
    sources=(
        "control.c",
        "copies.c",
        "device.c",
        "driver.c",
        "driver_modules.c",
        "entry_points.c",
        "errors.c",
        "graphs.c",
        "host_memory.c",
        "kernels.c",
        "memory.c",
        "occupancy.c",
        "pools.c",
        "properties.c",
        "ranges.c",
        "space.c",
        "streams.c",
    ),
    exports=("cuda*", "__cuda*", "cu[A-Z]*", "phantom_*"),
    status=801,  # cudaErrorNotSupported
)
# In the order in which they are preloaded.
LIBRARIES = (
    RUNTIME,
    Library(
        name="phantom",
        sources=("loader.c", "cudnn.c", "cudnn_sizes.c", "cudnn_rnn.c", "ranges.c"),
        exports=("dlopen", "cudnn*"),
        status=3000,  # CUDNN_STATUS_NOT_SUPPORTED
        node=False,
    ),
    Library(name="cublas", sources=("cublas.c",), exports=("cublas*",), status=15),
    Library(name="cublasLt", sources=("cublaslt.c",), exports=("cublasLt*",), status=15),
    Library(name="cusolver", sources=("cusolver.c",), exports=("cusolver*",), status=9),
    Library(name="cusparse", sources=("cusparse.c",), exports=("cusparse*",), status=10),
    Library(name="cufft", sources=("cufft.c",), exports=("cufft*",), status=16),
    Library(name="nccl", sources=("nccl.c",), exports=("nccl*", "pnccl*"), status=5, node=False),
    Library(
        # Not by NVRTC's own name: the real one must stay to be found, by cuDNN.
        name="phantom_nvrtc",
        sources=("nvrtc.c",),
        exports=("nvrtc*",),
        status=11,  # NVRTC_ERROR_INTERNAL_ERROR
        node=False,
        folder="opened",
        is_preloaded=False,
    ),
    Library(
        name="nvidia-ml",
        sources=("nvml.c",),
        exports=("nvml*",),
        status=3,  # NVML_ERROR_NOT_SUPPORTED
        node=False,
        folder="opened",
        is_preloaded=False,
    ),
)


def preloaded(major: int) -> list[str]:
    """Return the files that a process on the phantom preloads, in order."""
    return [one.file(major) for one in LIBRARIES if one.is_preloaded]


def compile_libraries(out: Path, major: int) -> None:
    """Compile every library of a CUDA major into a new folder.

    Raises:
        CompileError: there is no gcc, or it refused.
    """
    if shutil.which("gcc") is None:
        raise CompileError("there is no gcc")
    out = out.resolve()
    (out / "opened").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        # One name for all: the same sources give the same bytes wherever they are compiled.
        scratch = Path(made) / "names"
        scratch.mkdir()
        for library in LIBRARIES:
            _compile(library, out, major, scratch)
        # A driver that leads to the functions in the runtime, for those who open it by name.
        driver = scratch / "empty.c"
        driver.write_text("")
        _gcc(
            [driver.name, "-Wl,--no-as-needed", *_against_runtime(out, major)],
            out / "opened" / "libcuda.so.1",
            scratch,
        )


def _compile(library: Library, out: Path, major: int, scratch: Path) -> None:
    file = library.file(major)
    sources = [str(SOURCES / name) for name in library.sources]
    made = scratch / f"{library.name}_names.c"
    made.write_text(_other_functions(library))
    script = scratch / f"{library.name}.map"
    exports = " ".join(f"{pattern};" for pattern in library.exports)
    script.write_text(f"{file if library.node else ''} {{ global: {exports} local: *; }};\n")
    replaced = ",".join(f'"{name}"' for name in preloaded(major))
    options = [
        f"-DPHANTOM_CUDA_MAJOR={major}",
        f"-DPHANTOM_REPLACED={replaced}",
        f"-I{SOURCES}",
        f"-Wl,--version-script={script}",
    ]
    if library is not RUNTIME:
        options += _against_runtime(out, major)
    _gcc([*sources, made.name, *options, "-ldl", "-lpthread"], out / library.folder / file, scratch)


def _against_runtime(out: Path, major: int) -> list[str]:
    return [f"-L{out}", f"-l:{RUNTIME.file(major)}"]


def _other_functions(library: Library) -> str:
    """Write the functions that the sources do not have: weak, so that those in sources win.

    `names/X.compute` lists functions that only compute on the device: they do nothing and succeed.
    `names/X` lists every public function (`names/cudart.driver` those of the driver that PyTorch
    insists on finding): what is left says its name and returns an error.
    """
    lines = [
        "void phantom_missing(const char *name);",
        "void phantom_handle_ran(void *handle);",
        "#define WEAK __attribute__((weak)) long",
        "#define COMPUTE(f) WEAK f(void *handle) { phantom_handle_ran(handle); return 0; }",
        f"#define MISSING(f) WEAK f(void) {{ phantom_missing(#f); return {library.status}; }}",
    ]
    compute = _names(f"{library.name}.compute")
    lines += [f"COMPUTE({name})" for name in compute]
    every = [*_names(library.name), *_names(f"{library.name}.driver")]
    lines += [f"MISSING({name})" for name in every if name not in set(compute)]
    return "\n".join(lines) + "\n"


def _names(file: str) -> list[str]:
    path = SOURCES / "names" / file
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def _gcc(arguments: list[str], out: Path, folder: Path) -> None:
    """Run gcc in a folder, whose path is nowhere in what it makes."""
    mapped = f"-ffile-prefix-map={folder}=names"
    command = ["gcc", *FLAGS, mapped, f"-Wl,-soname,{out.name}", "-o", str(out), *arguments]
    done = subprocess.run(  # noqa: S603 (our own command)
        command, capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise CompileError(f"gcc refused {out.name}: {first.strip()}")
