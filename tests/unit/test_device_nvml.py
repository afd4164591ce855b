"""Cards present in the machine: really none, and some in a stand-in for the driver's library."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from memplan.device import nvml
from memplan.errors import BadInputError
from memplan.units import GIB, MIB

no_driver = pytest.mark.skipif(
    Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver"
)


class NVMLError(Exception):
    """The stand-in's error."""


def device(name, total_mib, capability, **changes):
    """Return a device as the stand-in knows it: 24 GiB class, 300 MiB the driver's own."""
    usual = {
        "name": name,
        "uuid": "GPU-" + name.lower().replace(" ", ""),
        "total": total_mib * MIB,
        "reserved": 300 * MIB,
        "used": 1000 * MIB,
        "capability": capability,
        "running": [SimpleNamespace(pid=7, usedGpuMemory=990 * MIB)],
    }
    return usual | changes


def pynvml(*devices):
    """Return a stand-in for the third-party module `pynvml`, with the devices it is given."""

    def handle(index):
        if devices[index] is None:
            raise NVMLError("GPU is lost")
        return devices[index]

    def memory(handle, version):
        assert version == 0x02000028
        free = handle["total"] - handle["reserved"] - handle["used"]
        numbers = {key: handle[key] for key in ("total", "reserved", "used")}
        return SimpleNamespace(free=free, **numbers)

    def running(handle):
        if handle["running"] is None:
            raise NVMLError("Insufficient Permissions")
        return handle["running"]

    calls = []
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlMemory_v2=0x02000028,
        calls=calls,
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlSystemGetDriverVersion=lambda: b"580.65.06",
        nvmlDeviceGetCount=lambda: len(devices),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda handle: handle["name"],
        nvmlDeviceGetUUID=lambda handle: handle["uuid"],
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetCudaComputeCapability=lambda handle: handle["capability"],
        nvmlDeviceGetComputeRunningProcesses=running,
    )


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts devices into the machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*devices):
        module = pynvml(*devices)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return put


RTX_3090 = device("NVIDIA GeForce RTX 3090", 24576, (8, 6))
A100_80 = device("NVIDIA A100-SXM4-80GB", 81920, (8, 0))


@no_driver
def test_without_a_driver_no_card_is_present():
    """On a machine without an NVIDIA driver the list is empty, and nothing is raised."""
    assert () == nvml.present()


@no_driver
def test_without_a_card_an_index_names_the_way_out():
    """`--gpu 0` without a card says so and offers `--gpu NAME`."""
    with pytest.raises(BadInputError, match=r"No NVIDIA card.*--gpu 0.*--gpu NAME.*rtx-3090"):
        nvml.card_at(0)


def test_without_the_library_no_card_is_present(monkeypatch):
    """A missing Python binding is as good as no card."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert () == nvml.present()


def test_a_present_card_has_the_catalogue_s_figures_and_its_own_memory(install):
    """Capacity is what torch reports: the total less the driver's own part."""
    module = install(RTX_3090)
    one = nvml.card_at(0)

    assert ("rtx-3090", True, 0) == (one.card.name, one.in_catalogue, one.index)
    assert 24276 * MIB == one.capacity_bytes == one.card.capacity_bytes
    assert (1000 * MIB, 23276 * MIB) == (one.used_bytes, one.free_bytes)
    assert (nvml.Process(pid=7, used_bytes=990 * MIB),) == one.processes
    assert "580.65.06" == one.driver_version
    assert "NVML" in one.card.source
    assert ["init", "shutdown"] == module.calls


@pytest.mark.parametrize(
    ("name", "total_mib", "capability", "card"),
    [
        ("NVIDIA GeForce RTX 3080", 10240, (8, 6), "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", 12288, (8, 6), "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, (8, 9), "rtx-4060-ti-16gb"),
        ("Tesla T4", 15360, (7, 5), "t4"),
        ("NVIDIA H100 80GB HBM3", 81559, (9, 0), "h100-80gb"),
    ],
)
def test_cards_of_one_name_are_told_apart_by_memory(install, name, total_mib, capability, card):
    """The driver's name chooses the card; where several bear it, the nearest capacity does."""
    install(device(name, total_mib, capability))

    assert card == nvml.card_at(0).card.name


def test_a_card_the_catalogue_lacks_borrows_from_the_nearest(install):
    """An unlisted card has its own name and memory, and says whose figures the rest are."""
    install(device("NVIDIA RTX A6000", 49140, (8, 6)))
    one = nvml.card_at(0)

    assert ("rtx-a6000", False) == (one.card.name, one.in_catalogue)
    assert (8, 6) == one.card.compute_capability
    assert "not in the catalogue" in one.card.source
    assert "a40" in one.card.source


@pytest.mark.parametrize(
    ("capability", "used"), [((8, 7), (8, 6)), ((13, 0), (12, 0)), ((5, 2), (6, 0))]
)
def test_an_unlisted_architecture_is_taken_for_the_one_below(capability, used):
    """The nearest older architecture stands in, or the oldest there is."""
    card, in_catalogue = nvml.identify("NVIDIA Something", 8 * GIB, capability)

    assert (used, False) == (card.compute_capability, in_catalogue)


def test_an_index_beyond_the_cards_lists_them(install):
    """`--gpu 2` with two cards names the two."""
    install(RTX_3090, A100_80)
    expected = r"--gpu 2 names no card; present: 0 \(NVIDIA GeForce RTX 3090\), 1 \(NVIDIA A100"

    with pytest.raises(BadInputError, match=expected):
        nvml.card_at(2)


def test_a_lost_card_and_hidden_processes_do_not_stop_the_rest(install):
    """A card that fell off the bus is left out; processes the driver hides are none."""
    install(None, device("Tesla T4", 15360, (7, 5), running=None))

    assert [("t4", ())] == [(one.card.name, one.processes) for one in nvml.present()]


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("0,1", ["rtx-3090", "a100-80gb"]),
        ("1,0", ["a100-80gb", "rtx-3090"]),
        ("1", ["a100-80gb"]),
        ("GPU-nvidiaa100", ["a100-80gb"]),
        ("0,5,1", ["rtx-3090"]),
        ("", []),
        ("-1", []),
    ],
)
def test_hidden_cards_are_not_counted(install, monkeypatch, variable, names):
    """CUDA_VISIBLE_DEVICES chooses and orders, up to the first entry that names no card."""
    install(RTX_3090, A100_80)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = nvml.present()

    assert names == [one.card.name for one in found]
    assert list(range(len(names))) == [one.index for one in found]
