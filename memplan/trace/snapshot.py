"""PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`), read without running them.

Source: `torch/cuda/memory.py` and `torch/csrc/cuda/memory_snapshot.cpp`, PyTorch 2.0 to 2.15.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import itertools
import operator
import zlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from memplan.device.allocator_records import BlockRecord, BlockState, SegmentRecord
from memplan.device.allocator_settings import NO_ROUNDUP, AllocatorSettings
from memplan.errors import BadInputError, BadTapeError, UsageError
from memplan.files.pickles import BadPickleError
from memplan.files.plain_pickles import (
    HandedOverError,
    NamingPickleError,
    PlainReader,
    on_one_line,
)
from memplan.host_memory import available_host_bytes
from memplan.trace.snapshot_history import History, Rows
from memplan.trace.snapshot_places import held_by_place
from memplan.units import format_bytes

_STATES = frozenset(get_args(BlockState))
_GZIP = b"\x1f\x8b"
_MOST_BYTES = 16 << 30
# The part of the host memory left that reading may take.
_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One device's part of a memory snapshot."""

    torch_version: tuple[int, int]
    """The newest release that writes files of this form, which is told by their fields."""
    segments: tuple[SegmentRecord, ...]
    """Every segment at the time of the snapshot, by address."""
    trace: History
    """The recorded history before it, oldest first."""
    settings: AllocatorSettings
    """The options in force; the memory fraction is not in the file."""
    origin: str = "measured"
    """What the history is: `simulated` or `phantom` where memplan wrote the file."""
    held_by: Mapping[str, int] = field(default_factory=dict)
    """Bytes in use at the time of the snapshot by the user's line that asked for them."""

    @property
    def reserved_bytes(self) -> int:
        """Bytes held from the driver at the time of the snapshot."""
        return sum(segment.total_size for segment in self.segments)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the blocks in use at the time of the snapshot."""
        return sum(segment.allocated_size for segment in self.segments)

    @property
    def reserved_before_bytes(self) -> int:
        """Bytes held from the driver when the history began."""
        return self.reserved_bytes - int(self.trace.driver_changes().sum())

    @property
    def is_cold_start(self) -> bool:
        """Whether the history began before the device's first segment.

        Then what it took from the driver and gave back is exactly what is reserved at the end.
        """
        return not self.reserved_before_bytes

    def reserved_after(self) -> Any:
        """Return bytes held from the driver after each entry, int64 `[entries]`."""
        return self.reserved_before_bytes + np.cumsum(self.trace.driver_changes())


def read_snapshot(path: Path, device: int = 0) -> Snapshot:
    """Return one device's segments and history from a snapshot file.

    Only plain containers, numbers and strings are read: a file that names any class or function
    is refused before it could be called.

    Args:
        path: the pickle that `torch.cuda.memory._dump_snapshot` wrote.
        device: index of the GPU within the recorded process.

    Raises:
        BadTapeError: the file is no snapshot, is damaged, or is unsafe to read.
    """
    return parsed(path, load_content(path), device)


def load_content(path: Path) -> dict[str, Any]:
    """Return what a snapshot file holds, plain containers, numbers and strings.

    Raises:
        BadTapeError: the file is no snapshot, is damaged, or is unsafe to read.
    """
    content = _load(path)
    if isinstance(content, list):  # what `torch.cuda.memory_snapshot()` returns: segments alone
        content = {"segments": content, "device_traces": []}
    if not isinstance(content, dict) or not {"segments", "device_traces"} <= content.keys():
        raise BadTapeError(
            f"{path} is no PyTorch memory snapshot: it lacks segments or device_traces. Write one "
            "with torch.cuda.memory._dump_snapshot."
        )
    return content


def parsed(path: Path, content: Mapping[str, Any], device: int = 0) -> Snapshot:
    """Return one device's segments and history of a file's content.

    Raises:
        BadTapeError: it is not laid out as any release of PyTorch does.
    """
    try:
        with _collecting_paused():
            return snapshot_of(content, device)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BadTapeError(
            f"{path} is not laid out as PyTorch 2.0 to 2.15 write snapshots "
            f"({on_one_line(reason)}). Write it anew with torch.cuda.memory._dump_snapshot."
        ) from None


class _Bounded:
    """A file that ends with an error where it holds more than any snapshot, or than there is room.

    Of a packed file only reading tells how much it holds, and of any file how much is kept of it.
    """

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._path = path
        self._available = available_host_bytes()
        self._left = _MOST_BYTES

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most so many."""
        data: bytes = self._file.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise BadPickleError(f"it holds more than {format_bytes(_MOST_BYTES)}")
        if available_host_bytes() < (1 - _SHARE) * self._available:
            raise BadInputError(
                f"{self._path} takes more host memory than the {format_bytes(self._available)} "
                "left. Record fewer entries (max_entries), or read it on a machine with more."
            )
        return data


@contextlib.contextmanager
def _collecting_paused() -> Iterator[None]:
    """Make many containers without looking again and again whether they are still used.

    Nothing is freed meanwhile, and looking takes two thirds of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path, store: Rows) -> Any:
    """Return what a file holds."""
    with path.open("rb") as file:
        is_packed = file.read(2) == _GZIP
        file.seek(0)
        # Read as it comes: the text of a large file need not be held beside its content.
        source = gzip.GzipFile(fileobj=file) if is_packed else file
        with _collecting_paused():
            return PlainReader(_Bounded(source, path).read, store).load()


def _load(path: Path) -> Any:
    try:
        try:
            return _read(path, Rows())
        except HandedOverError:  # only a tool that put lists together anew writes an entry twice
            return _read(path, Rows(keeps_rows=True))
    except BadInputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadTapeError(f"{path} cannot be read: {reason}.") from None
    except NamingPickleError as error:
        raise BadTapeError(f"{path} is refused: {error}. Use a file you trust.") from None
    except (BadPickleError, EOFError, zlib.error) as error:
        raise BadTapeError(
            f"{path} is no readable pickle: {error}. Write it anew with "
            "torch.cuda.memory._dump_snapshot."
        ) from None


def snapshot_of(content: Mapping[str, Any], device: int) -> Snapshot:
    """Return one device's part of what `torch.cuda.memory._snapshot()` returns.

    Raises:
        ValueError: nothing is recorded of the device.
    """
    history = _history(content, device)
    segments = [row for row in content["segments"] if row.get("device", 0) == device]
    if not history and not segments:
        raise ValueError(f"nothing is recorded of device {device}")
    version = _torch_version(content, history.fields)
    records = sorted((_segment(row) for row in segments), key=lambda record: record.address)
    for one, other in itertools.pairwise(records):
        if one.address + one.total_size > other.address:
            raise ValueError(f"segments {one.address:#x} and {other.address:#x} overlap")
    return Snapshot(
        torch_version=version,
        segments=tuple(records),
        trace=history,
        settings=_settings(content, version, tuple(records), history),
        origin=_origin(content),
        held_by=held_by_place(content, device),
    )


def _origin(content: Mapping[str, Any]) -> str:
    """Return what the file says of itself where memplan wrote it."""
    said = content.get("memplan")
    origin = said.get("origin") if isinstance(said, Mapping) else None
    return str(origin) if origin in ("simulated", "phantom") else "measured"


def _history(content: Mapping[str, Any], device: int) -> History:
    """Return the entries of one device that stand for what the allocator did."""
    rows = Rows()
    histories = [rows.history(each) for each in content["device_traces"]]
    rows.fields.update(*(history.fields for history in histories))
    if not 0 <= device < len(histories):
        return History(fields=rows.fields)
    histories[device].fields = rows.fields
    return histories[device]


def _torch_version(content: Mapping[str, Any], entry: AbstractSet[str]) -> tuple[int, int]:
    """Return the newest release whose snapshots have these fields and no others.

    Args:
        content: of the file.
        entry: fields of its history's entries.
    """
    settings = content.get("allocator_settings", {})
    segments = content["segments"]
    signs: list[tuple[tuple[int, int], bool]] = [
        ((2, 15), "internal_metadata" in entry),
        ((2, 14), "host_segments" in content),
        ((2, 13), "max_round_threshold" in settings),
        ((2, 12), "pool_id" in entry),
        ((2, 11), "user_metadata" in entry),
        ((2, 9), "graph_capture_record_stream_reuse" in settings),
        ((2, 8), "compile_context" in entry),
        ((2, 7), "external_annotations" in content),
        ((2, 4), "allocator_settings" in content),
        ((2, 2), "time_us" in entry),
        ((2, 1), any("is_expandable" in row for row in segments)),
    ]
    return next((version for version, is_present in signs if is_present), (2, 0))


def _segment(row: Mapping[str, Any]) -> SegmentRecord:
    address = _count(row["address"])
    blocks = []
    at = address
    for block in row["blocks"]:
        # PyTorch 2.0 has no block addresses; blocks tile their segment in order.
        state: Any = _text(block["state"])
        state = "active_pending_free" if state == "active_awaiting_free" else state
        if state not in _STATES:
            raise ValueError(f"a block is {state!r}")
        size = _count(block["size"])
        blocks.append(BlockRecord(at, size, _count(block.get("requested_size", size)), state))
        at += size
    if at - address != row["total_size"]:
        raise ValueError(f"the blocks of segment {address:#x} do not fill it")
    kind: Any = _text(row["segment_type"])
    if kind not in {"small", "large"}:
        raise ValueError(f"a segment is {kind!r}")
    first, second = map(operator.index, row.get("segment_pool_id", (0, 0)))
    return SegmentRecord(
        address=address,
        total_size=at - address,
        allocated_size=_count(row["allocated_size"]),
        active_size=_count(row["active_size"]),
        requested_size=sum(block.requested_size for block in blocks if block.state != "inactive"),
        stream=operator.index(row["stream"]),
        segment_type=kind,
        segment_pool_id=(first, second),
        is_expandable=bool(row.get("is_expandable", False)),
        blocks=tuple(blocks),
    )


def _count(value: object) -> int:
    """Return an address or bytes as the file has them."""
    if type(value) is not int or value >> 63:
        raise ValueError("an address or a size is no number of 0 to 63 bits")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError(f"a {type(value).__name__} stands where a text should")
    return value


def _settings(
    content: Mapping[str, Any],
    version: tuple[int, int],
    segments: tuple[SegmentRecord, ...],
    entries: History,
) -> AllocatorSettings:
    """Return the recorded options; files before 2.3 only show whether segments expand."""
    recorded = content.get("allocator_settings")
    if recorded is None:
        expands = any(segment.is_expandable for segment in segments)
        expands = expands or any(entry.action == "segment_map" for entry in entries)
        return AllocatorSettings(expandable_segments=expands)
    text = next((_text(recorded[key]) for key in recorded if key.endswith("ALLOC_CONF")), "")
    try:
        base = AllocatorSettings.parse(text, version)
    except UsageError:
        base = AllocatorSettings()  # the fields below still hold; the text is of another release
    maximum = int(recorded.get("max_split_size", -1))
    divisions = recorded.get("roundup_power2_divisions", {})
    table = tuple(int(divisions.get(str(1 << at), 0)) for at in range(len(NO_ROUNDUP)))
    return replace(
        base,
        max_split_bytes=None if maximum < 0 else maximum,
        garbage_collection_threshold=float(recorded.get("garbage_collection_threshold", 0.0)),
        expandable_segments=bool(recorded.get("expandable_segments", False)),
        roundup_power2_divisions=table,
        text=text,
    )
