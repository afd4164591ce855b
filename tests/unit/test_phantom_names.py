"""What the installed torch asks of CUDA's libraries by name is there, or stated as not being."""

import functools
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from memplan.phantom.build import library_folder
from memplan.phantom.compile import LIBRARIES, SOURCES
from memplan.phantom.installed import cuda_major

SITE = Path(importlib.util.find_spec("torch").origin).parents[1]
# What the phantom replaces, by the beginning of a name; the rest stays NVIDIA's own.
REPLACED = re.compile(r"_*cuda[A-Z]|cublas(?!Xt)|cusolver|cusparse(?!Lt)|cufft|nccl|nvrtc|cudnn")
# Exported and an error when called: sharing memory between processes, cuDNN's interface of
# version 7 (PyTorch takes version 8 unless told otherwise), NCCL's for kernels, scalar rotations.
NOT_IMPLEMENTED = re.compile(
    r"cudaIpc|cudnnFindConvolution|cudnnGetConvolution\w+(_v7|WorkspaceSize)|ncclDevComm"
    r"|cublas[A-Z]rotm?g_v2"
)


@functools.cache
def _symbols(path, *options):
    """Return each symbol of a library with its type, as nm prints them."""
    done = subprocess.run(
        ["nm", "-D", *options, path], capture_output=True, text=True, check=True, timeout=120
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {parts[-1].split("@")[0]: parts[-2] for parts in lines}


def _askers():
    found = [*SITE.glob("torch/lib/*.so"), *SITE.glob("torchvision/*.so")]
    return [*found, *SITE.glob("nvidia/nvshmem/lib/libnvshmem_host.so*")]


def _exported():
    folder = library_folder()
    files = [folder / one.folder / one.file(cuda_major()) for one in LIBRARIES]
    return {name: kind for file in files for name, kind in _symbols(file).items()}


def _real_cudnn():
    (library,) = SITE.glob("nvidia/cudnn/lib/libcudnn.so.*")
    return _symbols(library, "--defined-only")


def _asked():
    names = {name for path in _askers() for name in _symbols(path, "--undefined-only")}
    return sorted(name for name in names if REPLACED.match(name))


def test_every_name_that_torch_asks_for_is_exported():
    """What is not ours is cuDNN's own and takes no handle; nothing reaches a replaced library."""
    exported, cudnn = _exported(), _real_cudnn()

    assert len(_asked()) > 500
    assert [] == [name for name in _asked() if name not in exported and name not in cudnn]


def test_what_torch_asks_for_and_is_not_implemented_is_stated():
    """A weak symbol stands for "not implemented", but for those that only compute."""
    exported = _exported()
    computing = {
        name for path in (SOURCES / "names").glob("*.compute") for name in path.read_text().split()
    }
    weak = {name for name in _asked() if exported.get(name) == "W"} - computing

    assert {name for name in weak if NOT_IMPLEMENTED.match(name)} == weak


def test_nothing_of_the_drivers_undocumented_side_is_exported():
    """No table of the driver is imitated; a runtime inside another library sees no driver."""
    exported = _exported()

    assert {"cuInit", "cuMemCreate"} <= set(exported)
    assert not {"cuGetExportTable", "cuGetProcAddress", "cuGetProcAddress_v2"} & set(exported)


def test_only_public_names_leave_the_libraries():
    """Helpers stay inside: a preloaded symbol would stand before everybody's."""
    allowed = re.compile(
        r"_*cuda|cu[A-Z]|cublas|cusolver|cusparse|cufft|p?nccl|_*nvrtc|cudnn|nvml|phantom_|dlopen"
    )
    defined = {
        name
        for one in LIBRARIES
        for name, kind in _symbols(
            library_folder() / one.folder / one.file(cuda_major()), "--defined-only"
        ).items()
        if kind != "A"
    }

    assert [] == [name for name in defined if not allowed.match(name)]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda one: one.name)
def test_a_name_is_listed_once(library):
    """A list repeats nothing, and what computes is a public name too."""
    every = (SOURCES / "names" / library.name).read_text().split() if _has(library.name) else []
    computing = f"{library.name}.compute"
    some = (SOURCES / "names" / computing).read_text().split() if _has(computing) else []

    assert len(set(every)) == len(every)
    assert len(set(some)) == len(some)


def _has(file):
    return (SOURCES / "names" / file).exists()
