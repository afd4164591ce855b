"""A card: its variants, its peaks and its description for cuDNN."""

import pytest

from memplan.device.catalogue import card
from memplan.errors import BadInputError
from memplan.units import GIB


def test_another_capacity_leaves_the_rest_alone():
    """`--capacity` changes the capacity and says so in the source."""
    whole = card("rtx-3090")
    part = whole.with_capacity(16 * GIB)

    assert 16 * GIB == part.capacity_bytes
    assert "capacity as given" in part.source
    assert whole.context_bytes == part.context_bytes
    assert 16 * GIB != whole.capacity_bytes


def test_a_capacity_the_context_fills_is_refused():
    """A capacity below the context alone is an error, not a plan."""
    with pytest.raises(BadInputError, match="leaves nothing"):
        card("h200").with_capacity(card("h200").context_bytes)


def test_a_measured_context_replaces_the_catalogue_s():
    """A calibration's context is exact and names its origin."""
    measured = card("t4").with_context(123, 0, "measured by a probe")

    assert (123, 0) == (measured.context_bytes, measured.context_uncertainty_bytes)
    assert measured.source.endswith("context measured by a probe")


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("a100-80gb", "amp-fp16", 312),
        ("a100-80gb", "fp32", 19.5),
        ("a100-80gb", "tf32", 156),
        ("rtx-3090", "amp-fp16", 71.2),
        ("h200", "amp-bf16", 989),
        ("t4", "float16", 65),
        ("t4", "amp-bf16", 8.1),
        ("p100", "tf32", 9.3),
    ],
)
def test_peak_is_that_of_the_precision(name, precision, tflops):
    """Each precision has its dense peak; without a tensor path it is the float32 one."""
    assert tflops * 1e12 == pytest.approx(card(name).peak_flops(precision))


def test_an_unknown_precision_is_refused():
    """A precision that does not exist is named, with those that do."""
    with pytest.raises(BadInputError, match="No precision 'fp8'"):
        card("h200").peak_flops("fp8")


def test_bfloat16_begins_with_ampere():
    """PyTorch gives bfloat16 convolutions to cuDNN from compute capability 8.0 on."""
    assert not card("t4").supports_bfloat16
    assert not card("v100-16gb").supports_bfloat16
    assert card("a30").supports_bfloat16


def test_the_description_has_cudnn_s_keys():
    """The description of an H200 is the one that was tried with cuDNN."""
    expected = {
        "maxGridSize": [2147483647, 65535, 65535],
        "maxBlockSize": [1024, 1024, 64],
        "regsPerBlock": 65536,
        "multiProcessorCount": 132,
        "smClockRateKHz": 1980000,
        "memClockRateKHz": 3201000,
        "memoryBusWidth": 6144,
        "l2CacheSize": 62914560,
        "warpSize": 32,
        "maxSharedMemoryPerBlock": 49152,
        "maxSharedMemoryPerBlockOptin": 232448,
        "reservedSharedMemoryPerBlock": 1024,
        "maxRegistersPerSM": 65536,
        "maxCtasPerSM": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerSM": 2048,
        "pciDeviceId": 0,
        "isTccDriver": 0,
        "supportCoopLaunch": 1,
        "totalGlobalMem": card("h200").capacity_bytes,
        "cudaDeviceId": 0,
        "deviceVer": 900,
        "driverVer": 13000,
        "deviceName": "NVIDIA H200",
    }

    assert expected == card("h200").cudnn_description()
