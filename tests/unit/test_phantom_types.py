"""The types the phantom declares are those of NVIDIA's headers, where a wheel brings them."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from memplan.phantom.compile import SOURCES
from memplan.phantom.installed import cuda_major

SITE = Path(importlib.util.find_spec("torch").origin).parents[1]
# torch's wheels bring all headers but crt/host_defines.h, which Triton's has.
HEADERS = [
    *SITE.glob("nvidia/cu13/include"),
    *SITE.glob("nvidia/cuda_runtime/include"),
    *SITE.glob("triton/backends/nvidia/include"),
]
FIELDS = {
    "struct cudaDeviceProp": (
        "uuid totalGlobalMem sharedMemPerBlock regsPerBlock warpSize memPitch maxThreadsPerBlock "
        "maxThreadsDim maxGridSize totalConstMem major minor textureAlignment multiProcessorCount "
        "integrated canMapHostMemory maxTexture1D maxTexture2D surfaceAlignment concurrentKernels "
        "ECCEnabled pciBusID pciDeviceID pciDomainID asyncEngineCount unifiedAddressing "
        "memoryBusWidth l2CacheSize maxThreadsPerMultiProcessor streamPrioritiesSupported "
        "sharedMemPerMultiprocessor regsPerMultiprocessor managedMemory concurrentManagedAccess "
        "computePreemptionSupported cooperativeLaunch sharedMemPerBlockOptin "
        "maxBlocksPerMultiProcessor reservedSharedMemPerBlock hostRegisterSupported "
        "memoryPoolsSupported clusterLaunch unifiedFunctionPointers"
    ),
    "struct cudaPointerAttributes": "type device devicePointer hostPointer",
    "struct cudaFuncAttributes": (
        "sharedSizeBytes constSizeBytes localSizeBytes maxThreadsPerBlock numRegs ptxVersion "
        "binaryVersion maxDynamicSharedSizeBytes preferredShmemCarveout clusterDimMustBeSet "
        "nonPortableClusterSizeAllowed"
    ),
    "cudaLaunchConfig_t": "gridDim blockDim dynamicSmemBytes stream attrs numAttrs",
    "struct cudaMemcpy3DParms": "srcArray srcPos srcPtr dstArray dstPos dstPtr extent kind",
    "struct cudaMemPoolProps": "allocType handleTypes location maxSize",
    "struct cudaMemAccessDesc": "location flags",
}


def _layout(tmp_path, name, include, *options):
    """Print the size of every type and the place of every field."""
    lines = [
        f'printf("{kind} %zu\\n", sizeof({kind}));'
        + "".join(
            f'printf("{kind}.{field} %zu\\n", offsetof({kind}, {field}));'
            for field in fields.split()
        )
        for kind, fields in FIELDS.items()
    ]
    source = tmp_path / f"{name}.c"
    source.write_text(
        f"#include <{include}>\n#include <stddef.h>\n#include <stdio.h>\n"
        "int main(void) {" + "\n".join(lines) + "return 0; }\n"
    )
    program = tmp_path / name
    subprocess.run(["gcc", *options, source, "-o", program], check=True, timeout=120)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(len(HEADERS) < 2, reason="no CUDA headers beside torch")
def test_sizes_and_offsets_are_nvidias(tmp_path):
    """Every structure that is written or read, field by field."""
    ours = _layout(
        tmp_path, "ours", "cuda_types.h", f"-I{SOURCES}", f"-DPHANTOM_CUDA_MAJOR={cuda_major()}"
    )
    theirs = _layout(
        tmp_path, "theirs", "cuda_runtime_api.h", *(f"-I{folder}" for folder in HEADERS)
    )

    assert len(ours.splitlines()) > 50
    assert theirs == ours
