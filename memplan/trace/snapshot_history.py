"""The history of a memory snapshot as columns: 33 bytes an entry, whatever its stack."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, get_args, overload

import numpy as np

from memplan.device.allocator_records import Action, TraceEntry

_ACTIONS: tuple[Action, ...] = get_args(Action)
_NUMBERS = {action: number for number, action in enumerate(_ACTIONS)}
_SIGNS = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
# What rows of known actions have, and the size of the batches that a pickler writes lists in.
_OF_ROW = {"addr", "size", "stream"}
_OF_OOM = {"device_free", "size", "stream"}
# What a frame tells of itself; one that tells more is not looked for among others.
_TOLD = frozenset({str, int, float, bool, type(None)})
_BATCH = 1000
# By the action's number: what an entry adds to the bytes held from the driver, times its size.
_TAKEN = np.array([_SIGNS.get(action, 0) for action in _ACTIONS], dtype=np.int64)


class Asked(NamedTuple):
    """Who asked, as an entry tells it."""

    frames: Sequence[Any]
    """Innermost first; equal stacks of one history are one object."""
    category: str


_NOBODY = Asked((), "")


class Row(NamedTuple):
    """One row of a file's history."""

    entry: TraceEntry | None
    """None where it stands for nothing that the allocator did."""
    asked: Asked
    fields: set[str]
    """Names that rows of its file had, this one among them."""


class Rows:
    """Makes histories of the rows that PyTorch writes; a store of a `PlainReader`.

    Args:
        keeps_rows: whether rows are kept as the dictionaries they are while a file is read, since
            it refers to some more than once.
    """

    def __init__(self, *, keeps_rows: bool = False) -> None:
        self._keeps_rows = keeps_rows
        self.fields: set[str] = set()
        """Names that any row had."""
        self._stacks: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self._frames: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._long: dict[int, tuple[Sequence[Any], Sequence[Any]]] = {}

    def kept(self, read: dict[Any, Any]) -> object:
        """Return a row's few facts in its place, and any other dictionary as it is."""
        is_row = not self._keeps_rows and "action" in read and not _lacking(read)
        return self._whole(read) if is_row else read

    def extended(self, container: Any, items: list[Any]) -> object:
        """Return a history of rows, one object for equal stacks, and any other list as it is."""
        first = items[0]
        if type(first) is Row or type(container) is History:
            history = container if type(container) is History else self._begun(container)
            for row in map(self._as_row, items):
                if row.entry is not None:
                    history.add(row.entry, row.asked)
            return history
        if not container and type(first) is dict and "filename" in first and len(items) < _BATCH:
            return self._stack(items)
        container.extend(items)
        return container

    def history(self, rows: Sequence[Any]) -> History:
        """Return the history of rows that are read already, or of plain dictionaries."""
        if isinstance(rows, History):
            return rows
        history = (
            self.extended(History(fields=self.fields), list(rows)) if rows else self._begun([])
        )
        assert isinstance(history, History)
        return history

    def _begun(self, rows: list[Any]) -> History:
        """Return a history of the rows that came before any was known as one."""
        return self.history(rows) if rows else History(fields=self.fields)

    def _as_row(self, row: Any) -> Row:
        if type(row) is not Row:
            return self._row(row)
        if row.fields is not self.fields:  # of another file's reading
            self.fields |= row.fields
        return row

    def _row(self, row: Mapping[str, Any]) -> Row:
        if missing := _lacking(row):
            raise ValueError(f"an entry of a history lacks {missing!r}")
        return self._whole(row)

    def _whole(self, row: Mapping[str, Any]) -> Row:
        if not row.keys() <= self.fields:
            self.fields |= row.keys()
        action = row["action"]
        if type(action) is not str or action not in _NUMBERS:
            return Row(None, _NOBODY, self.fields)
        place = row["device_free"] if action == "oom" else row["addr"]
        address, size, stream = map(operator.index, (place, row["size"], row["stream"]))
        if (address | size | (stream ^ stream >> 63)) >> 63:
            raise ValueError("an entry has a number below 0 or of more than 64 bits")
        frames = row.get("frames") or ()
        stack = frames if type(frames) is tuple else self._stack_of(frames)
        category = row.get("category", "")
        asked = Asked(stack, category if type(category) is str else "")
        return Row(TraceEntry(action, address, size, stream), asked, self.fields)

    def _stack_of(self, frames: Sequence[Any]) -> Sequence[Any]:
        """Return the stack of a list, which is looked through once where it is long."""
        if len(frames) < _BATCH:
            return self._stack(frames)
        known = self._long.get(id(frames))
        if known is None or len(known[1]) != len(frames):
            known = self._long[id(frames)] = frames, self._stack(frames)
        return known[1]

    def _stack(self, frames: Sequence[Any]) -> Sequence[Any]:
        """Return the stack of these frames, the same object whenever they are the same."""
        # Every frame in a key is kept, so that its identity stays its own.
        known = self._stacks.get(tuple(map(id, frames)))
        if known is None:
            stack = tuple(map(self._frame, frames))
            known = self._stacks.setdefault(tuple(map(id, stack)), stack)
        return known

    def _frame(self, frame: Any) -> Any:
        if not isinstance(frame, Mapping):
            return frame
        key = (*frame, *frame.values())
        if not _TOLD.issuperset(map(type, key)):
            return frame
        return self._frames.setdefault(key, frame)


def _lacking(row: Mapping[str, Any]) -> str:
    """Return what a row lacks; empty where it is whole, or stands for nothing known."""
    if "action" not in row:
        return "action"
    action = row["action"]
    if type(action) is not str or action not in _NUMBERS:
        return ""
    names = _OF_OOM if action == "oom" else _OF_ROW
    return "" if row.keys() >= names else min(names - row.keys())


class History(Sequence[TraceEntry]):
    """One device's entries, oldest first, which stand for what the allocator did."""

    def __init__(
        self, entries: Iterable[TraceEntry] = (), fields: AbstractSet[str] = frozenset()
    ) -> None:
        self.fields = fields
        """Names that rows of the file had."""
        self._actions = array("B")
        self._addresses = array("q")
        self._sizes = array("q")
        self._streams = array("q")
        self._asked = array("L")
        self._told: list[Asked] = [_NOBODY]
        self._told_numbers: dict[tuple[int, str], int] = {(id(_NOBODY.frames), ""): 0}
        for entry in entries:
            self.add(entry)

    def add(self, entry: TraceEntry, asked: Asked = _NOBODY) -> None:
        """Add one entry.

        Raises:
            OverflowError: a number needs more than 64 bits.
        """
        key = id(asked.frames), asked.category
        number = self._told_numbers.get(key)
        if number is None:
            number = self._told_numbers[key] = len(self._told)
            self._told.append(asked)
        self._actions.append(_NUMBERS[entry.action])
        self._addresses.append(entry.address)
        self._sizes.append(entry.size)
        self._streams.append(entry.stream)
        self._asked.append(number)

    def asked(self, index: int) -> Asked:
        """Return who asked for what an entry tells of."""
        return self._told[self._asked[index]]

    def driver_changes(self) -> Any:
        """Return what each entry adds to the bytes held from the driver, int64 `[entries]`."""
        actions = np.frombuffer(self._actions, dtype=np.uint8)
        return _TAKEN[actions] * np.frombuffer(self._sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._actions)

    def __iter__(self) -> Iterator[TraceEntry]:
        columns = self._addresses, self._sizes, self._streams
        actions = map(_ACTIONS.__getitem__, self._actions)
        return map(TraceEntry._make, zip(actions, *columns, strict=True))

    @overload
    def __getitem__(self, index: int) -> TraceEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TraceEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> TraceEntry | tuple[TraceEntry, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        action = _ACTIONS[self._actions[index]]
        return TraceEntry(action, self._addresses[index], self._sizes[index], self._streams[index])

    def __eq__(self, other: object) -> bool:
        """Compare entries; who asked is no part of what happened."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # it can grow


def driver_balance(entries: Sequence[TraceEntry]) -> int:
    """Return the bytes that a few entries took from the driver, less what they gave back."""
    return sum(_SIGNS[entry.action] * entry.size for entry in entries if entry.action in _SIGNS)
