"""Files with damaged bits are refused, and files that are larger than they look as well."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from memplan_models.yolov9.weights import read_checkpoint, state_of_checkpoint
from report_samples import sample_plan, sample_probe
from test_device_calibration import measured
from train_toy import Toy, toy_options

from memplan.answers import load_answers, save_answers
from memplan.device import calibration
from memplan.errors import BadInputError, BadTapeError, MemplanError
from memplan.files import MIB, Source
from memplan.files.archives import read_npz
from memplan.files.torch_files import read_torch_file
from memplan.tape import load_tape
from memplan.trace.record import record
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint

NUM_FLIPS = 150


def _flat(value, path=""):
    """Return everything in a content, by path, as things that compare."""
    if isinstance(value, torch.Tensor):
        return {path: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())}
    if isinstance(value, np.ndarray):
        return {path: (str(value.dtype), value.shape, value.tobytes())}
    if hasattr(value, "__dict__") or hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {k: v for key in value for k, v in _flat(value[key], f"{path}/{key}").items()} | {
            path: list(value)
        }
    if isinstance(value, list | tuple):
        return {k: v for i, one in enumerate(value) for k, v in _flat(one, f"{path}/{i}").items()}
    return {path: value}


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory):
    """A file of each kind with its reader."""
    folder = tmp_path_factory.mktemp("files")
    run = train(Toy(), toy_options(folder)).run_folder
    record(Toy(), 2).save(folder / "toy.tape")
    save_answers(folder / "probe.json", [sample_probe()], force=True)
    save_answers(folder / "plans.json", [sample_plan(), sample_plan()], force=True)
    measured().save(folder / "card.json")
    return {
        "last.pt": (run / "weights/last.pt", load_checkpoint),
        "weights": (run / "weights/best.pt", read_checkpoint),
        "tape": (folder / "toy.tape", load_tape),
        "probe": (folder / "probe.json", load_answers),
        "plans": (folder / "plans.json", load_answers),
        "calibration": (folder / "card.json", calibration.load),
    }


def _places(content, generator):
    """Return bits to flip: anywhere, and more in the zip's own records at both ends."""
    length = 8 * len(content)
    anywhere = generator.integers(0, length, NUM_FLIPS)
    ends = [
        *generator.integers(0, min(800, length), 40),
        *generator.integers(max(0, length - 16000), length, 80),
    ]
    return sorted({int(place) for place in [*anywhere, *ends]})


@pytest.mark.parametrize("kind", ["last.pt", "weights", "tape", "probe", "plans", "calibration"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, files, kind):
    """What is read from a damaged file is what was written, or an error of one line."""
    source, read = files[kind]
    content, expected = source.read_bytes(), _flat(read(source))
    path = tmp_path / source.name
    refused, lines = 0, []
    for place in _places(content, np.random.default_rng(3)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = _flat(read(path))
        except MemplanError as error:
            lines += str(error).splitlines()[1:]
            refused += 1
            continue
        assert expected == found, f"bit {place} changed what was read"

    assert [] == lines
    assert refused > NUM_FLIPS // 2


def _zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _pt(path, content, members=()):
    """Write a file like PyTorch's with a pickle of our choice."""
    return _zip(path, {"a/data.pkl": content, "a/version": b"3\n", **dict(members)})


PICKLES = {
    "a memo entry far away": b"\x80\x02]r" + struct.pack("<I", (1 << 31) - 2) + b".",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "an array of bytes that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a number without end": b"\x80\x02\x8b" + struct.pack("<i", MIB) + b"\x7f" * MIB + b".",
    "lists in lists": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
    "a class by its extension code": b"\x80\x02\x82\x01.",
    "an instance in the old way": b"\x80\x02(ios\nsystem\n.",
    "nothing": b"",
    "no end": b"\x80\x02N",
}  # fmt: skip


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_asks_for_more_than_it_has_is_refused(tmp_path, what):
    """No byte is made room for that the file does not have."""
    path = _pt(tmp_path / "x.pt", PICKLES[what])

    for read in (load_checkpoint, read_checkpoint):
        with pytest.raises(BadInputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def _tensor_pickle(size, stride, numel):
    """Return the pickle of one float32 tensor as PyTorch writes it, with any numbers."""

    class _Storage:
        pass

    class _Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value is marker else None

    class _Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (marker, 0, size, stride, False, {})

    marker = _Storage()
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump({"w": _Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "stride", "numel"),
    [
        ((1 << 40,), (0,), 4),
        ((1 << 20, 1 << 20), (0, 0), 4),
        ((8,), (1,), 4),
        ((4,), (1 << 40,), 4),
        ((4,), (1,), 1 << 40),
        ((-1,), (1,), 4),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, size, stride, numel):
    """Sixteen bytes do not become a terabyte, by strides of zero or otherwise."""
    path = _pt(tmp_path / "x.pt", _tensor_pickle(size, stride, numel), {"a/data/0": b"\0" * 16})

    with pytest.raises(BadInputError, match="cannot be read as"):
        read_checkpoint(path)


def test_a_tensor_of_its_storage_is_read(tmp_path):
    """The same file with honest numbers is no bomb."""
    path = _pt(tmp_path / "x.pt", _tensor_pickle((4,), (1,), 4), {"a/data/0": b"\0" * 16})

    assert torch.equal(torch.zeros(4), read_checkpoint(path)["w"])


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """PyTorch compresses nothing; what unpacks to a thousand times its size is no checkpoint."""
    members = {"a/data.pkl": b"N.", "a/data/0": b"\0" * (64 * MIB)}
    path = _zip(tmp_path / "x.pt", members, zipfile.ZIP_DEFLATED)

    with pytest.raises(BadInputError, match="is compressed"):
        load_checkpoint(path)


def test_an_archive_is_refused_by_the_sizes_it_declares(tmp_path):
    """An `.npz` that unpacks to more than asked for is not unpacked."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(4 * MIB, np.int64))
    source = Source(path=path, what="arrays")

    with pytest.raises(BadInputError, match="unpacks to 32"):
        read_npz(source, most_bytes=MIB)


def test_an_array_is_of_the_size_it_declares(tmp_path):
    """A header that promises a terabyte is compared with what is there before room is made."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"shape": (1 << 40,), "fortran_order": False, "descr": "<i8"}
    )
    path = _zip(tmp_path / "x.npz", {"a.npy": buffer.getvalue()})

    with pytest.raises(BadInputError, match="another size than it declares"):
        read_npz(Source(path=path, what="arrays"), most_bytes=MIB)


def test_arrays_of_objects_are_refused(tmp_path):
    """They are pickles."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.array([{}], object))

    with pytest.raises(BadInputError, match="other things than numbers"):
        read_npz(Source(path=path, what="arrays"), most_bytes=MIB)


def test_members_that_overlap_are_refused(tmp_path):
    """A hundred names for the same megabyte are not a hundred megabytes."""
    path = _zip(tmp_path / "x.pt", {"a/data.pkl": b"N.", "a/data/0": b"\0" * MIB})
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    end = content.index(b"PK\x05\x06")
    entry = content[at:end]
    many = [entry.replace(b"a/data/0", b"a/data/%x" % i) for i in range(1, 16)]
    tail = bytearray(content[end:])
    struct.pack_into("<HH", tail, 8, 17, 17)
    start = struct.unpack_from("<I", tail, 16)[0]
    struct.pack_into("<I", tail, 12, end - start + sum(map(len, many)))
    path.write_bytes(content[:end] + b"".join(many) + tail)

    with pytest.raises(BadInputError, match="overlap"):
        load_checkpoint(path)


def test_a_state_is_given_to_stand_ins_only(tmp_path):
    """A tensor's own `__setstate__` could take a storage of any size."""
    inner = _tensor_pickle((4,), (1,), 4)
    # {"w": tensor}, then the state is built onto the tensor before it is stored.
    content = inner[:-2] + b"Nb" + inner[-2:]
    path = _pt(tmp_path / "x.pt", content, {"a/data/0": b"\0" * 16})

    with pytest.raises(BadInputError, match="gives a state to"):
        read_checkpoint(path)


def test_modules_within_themselves_end(tmp_path):
    """A stubbed module that is its own child is refused, not walked for ever."""
    cls = b"cmodels.yolo\nDetectionModel\n"
    content = b"\x80\x02}q\x00X\x05\x00\x00\x00model" + cls + b")R" + b"q\x01"
    content += b"}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x01ss" + b"bs."
    path = _pt(tmp_path / "x.pt", content)

    with pytest.raises(BadInputError):
        state_of_checkpoint(read_checkpoint(path), path)


def test_an_edited_file_is_taken_once_its_checksum_is_removed(tmp_path):
    """Answers are text, and people may edit them; then they say so."""
    path = tmp_path / "probe.json"
    save_answers(path, [sample_probe()], force=True)
    edited = path.read_text().replace('"img": 640', '"img": 320')
    path.write_text(edited)

    with pytest.raises(BadTapeError, match="remove its line 'checksum'"):
        load_answers(path)
    lines = edited.splitlines()
    where = next(i for i, line in enumerate(lines) if '"checksum"' in line)
    lines[where - 1] = lines[where - 1].rstrip(",")
    path.write_text("\n".join(lines[:where] + lines[where + 1 :]))

    assert 320 == load_answers(path)[0].workload.img


def test_what_torch_itself_writes_is_read(tmp_path):
    """Types of tensors, shared storages, views, parameters and ordered dicts come back equal."""
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "view": base.t()[1:],
        "base": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "state": torch.nn.BatchNorm2d(3).state_dict(),
        "empty": torch.empty(0),
        "scalar": torch.tensor(3),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64,
                  torch.float8_e4m3fn, torch.uint16):  # fmt: skip
        content[str(dtype)] = torch.zeros(3, dtype=dtype)
    path = tmp_path / "x.pt"
    torch.save(content, path)

    found = read_torch_file(Source(path=path, what="a file"))

    assert list(content) == list(found)
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == found[name].dtype
            assert value.tolist() == found[name].tolist(), name
    assert torch.equal(content["state"]["running_var"], found["state"]["running_var"])
    assert found["view"].data_ptr() == found["base"].data_ptr() + 4
