"""PyTorch's memory snapshots (`torch.cuda.memory._dump_snapshot`), read without running them.

Source: `torch/cuda/memory.py` and `torch/csrc/cuda/memory_snapshot.cpp`, PyTorch 2.0 to 2.15.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from memplan.device.allocator_records import (
    Action,
    BlockRecord,
    BlockState,
    SegmentRecord,
    TraceEntry,
)
from memplan.device.allocator_settings import NO_ROUNDUP, AllocatorSettings
from memplan.errors import BadInputError, BadTapeError, UsageError
from memplan.host_memory import available_host_bytes
from memplan.trace.snapshot_places import held_by_place
from memplan.units import format_bytes

_ACTIONS = frozenset(get_args(Action))
_STATES = frozenset(get_args(BlockState))
_SIGNS = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_GZIP = b"\x1f\x8b"
_MOST_BYTES = 16 << 30
# What containers and numbers take of host memory, for each byte of the file they are read from, and
# which part of what is left may go into that: see docs/replay.md for what was measured.
_RESIDENT_A_BYTE = 4.5
_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One device's part of a memory snapshot."""

    torch_version: tuple[int, int]
    """The newest release that writes files of this form, which is told by their fields."""
    segments: tuple[SegmentRecord, ...]
    """Every segment at the time of the snapshot, by address."""
    trace: tuple[TraceEntry, ...]
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
    def is_cold_start(self) -> bool:
        """Whether the history began before the device's first segment.

        Then what it took from the driver and gave back is exactly what is reserved at the end.
        """
        return self.reserved_bytes == driver_balance(self.trace)


def driver_balance(trace: tuple[TraceEntry, ...]) -> int:
    """Return the bytes that a history took from the driver, less what it gave back."""
    return sum(_SIGNS[entry.action] * entry.size for entry in trace if entry.action in _SIGNS)


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadTapeError(
            f"{path} is not laid out as PyTorch 2.0 to 2.15 write snapshots ({error!r}). Write it "
            "anew with torch.cuda.memory._dump_snapshot."
        ) from None


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and strings, and resolves no name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise BadTapeError(
            f"it names {module}.{name}, which a memory snapshot never does, and was not run"
        )

    def persistent_load(self, pid: object) -> NoReturn:
        raise BadTapeError(f"it refers to an object outside the file ({pid!r})")


class _Bounded:
    """A file that ends with an error where it holds more than any snapshot, or than there is room.

    Of a packed file only reading tells how much it holds.
    """

    def __init__(self, file: Any, path: Path) -> None:
        self._file = file
        self._path = path
        self._available = available_host_bytes()
        most = int(_SHARE * self._available / _RESIDENT_A_BYTE)
        self._left = min(_MOST_BYTES, most)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return self._counted(self._file.read(size if 0 <= size <= self._left else self._left + 1))

    def readline(self) -> bytes:
        """Return the next line."""
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            if _SHARE * self._available / _RESIDENT_A_BYTE > _MOST_BYTES:
                raise BadTapeError("it holds more than 16 GiB")
            raise BadInputError(
                f"{self._path} takes more host memory than the {format_bytes(self._available)} "
                f"left: about {_RESIDENT_A_BYTE} bytes for each of the file's. Record fewer "
                "entries (max_entries), or read it on a machine with more."
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


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
            file.seek(0)
            # Read as it comes: the text of a large file need not be held beside its content.
            source = gzip.GzipFile(fileobj=file) if is_packed else file
            with _collecting_paused():
                return _PlainUnpickler(_Bounded(source, path)).load()
    except BadInputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadTapeError(f"{path} cannot be read: {reason}.") from None
    except BadTapeError as error:
        raise BadTapeError(f"{path} is refused: {error}. Use a file you trust.") from None
    except Exception as error:  # noqa: BLE001 - damaged pickles raise nearly anything
        raise BadTapeError(
            f"{path} is no readable pickle ({type(error).__name__}: {error}). Write it anew with "
            "torch.cuda.memory._dump_snapshot."
        ) from None


def snapshot_of(content: Mapping[str, Any], device: int) -> Snapshot:
    """Return one device's part of what `torch.cuda.memory._snapshot()` returns.

    Raises:
        ValueError: nothing is recorded of the device.
    """
    rows = history_rows(content, device)
    segments = [row for row in content["segments"] if row.get("device", 0) == device]
    if not rows and not segments:
        raise ValueError(f"nothing is recorded of device {device}")
    version = _torch_version(content)
    entries = tuple(_entry(row) for row in rows)
    records = sorted((_segment(row) for row in segments), key=lambda record: record.address)
    return Snapshot(
        torch_version=version,
        segments=tuple(records),
        trace=entries,
        settings=_settings(content, version, tuple(records), entries),
        origin=_origin(content),
        held_by=held_by_place(content, device),
    )


def _origin(content: Mapping[str, Any]) -> str:
    """Return what the file says of itself where memplan wrote it."""
    said = content.get("memplan")
    origin = said.get("origin") if isinstance(said, Mapping) else None
    return str(origin) if origin in ("simulated", "phantom") else "measured"


def history_rows(content: Mapping[str, Any], device: int = 0) -> list[Mapping[str, Any]]:
    """Return the entries of one device's history that stand for what the allocator did."""
    traces = content["device_traces"]
    rows = traces[device] if 0 <= device < len(traces) else []
    return [row for row in rows if row["action"] in _ACTIONS]


def _torch_version(content: Mapping[str, Any]) -> tuple[int, int]:
    """Return the newest release whose snapshots have these fields and no others."""
    settings = content.get("allocator_settings", {})
    segments = content["segments"]
    entry: Mapping[str, Any] = next((rows[0] for rows in content["device_traces"] if rows), {})
    signs: list[tuple[tuple[int, int], bool]] = [
        (
            (2, 15),
            any("internal_metadata" in row for rows in content["device_traces"] for row in rows),
        ),
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


def _entry(row: Mapping[str, Any]) -> TraceEntry:
    address = row["device_free"] if row["action"] == "oom" else row["addr"]
    return TraceEntry(row["action"], int(address), int(row["size"]), int(row["stream"]))


def _segment(row: Mapping[str, Any]) -> SegmentRecord:
    address = int(row["address"])
    blocks = []
    at = address
    for block in row["blocks"]:
        # PyTorch 2.0 has no block addresses; blocks tile their segment in order.
        state: Any = block["state"]
        state = "active_pending_free" if state == "active_awaiting_free" else state
        if state not in _STATES:
            raise ValueError(f"a block is {state!r}")
        size = int(block["size"])
        blocks.append(BlockRecord(at, size, int(block.get("requested_size", size)), state))
        at += size
    if at - address != row["total_size"]:
        raise ValueError(f"the blocks of segment {address:#x} do not fill it")
    if row["segment_type"] not in {"small", "large"}:
        raise ValueError(f"a segment is {row['segment_type']!r}")
    pool_id = tuple(int(part) for part in row.get("segment_pool_id", (0, 0)))
    return SegmentRecord(
        address=address,
        total_size=int(row["total_size"]),
        allocated_size=int(row["allocated_size"]),
        active_size=int(row["active_size"]),
        requested_size=sum(block.requested_size for block in blocks if block.state != "inactive"),
        stream=int(row["stream"]),
        segment_type=row["segment_type"],
        segment_pool_id=(pool_id[0], pool_id[1]),
        is_expandable=bool(row.get("is_expandable", False)),
        blocks=tuple(blocks),
    )


def _settings(
    content: Mapping[str, Any],
    version: tuple[int, int],
    segments: tuple[SegmentRecord, ...],
    entries: tuple[TraceEntry, ...],
) -> AllocatorSettings:
    """Return the recorded options; files before 2.3 only show whether segments expand."""
    recorded = content.get("allocator_settings")
    if recorded is None:
        expands = any(segment.is_expandable for segment in segments)
        expands = expands or any(entry.action == "segment_map" for entry in entries)
        return AllocatorSettings(expandable_segments=expands)
    text = next((str(recorded[key]) for key in recorded if key.endswith("ALLOC_CONF")), "")
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
