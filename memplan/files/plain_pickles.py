"""Pickles of containers, numbers and strings alone, read piece by piece.

The reader of the standard library resolves names, and holds all that it made until the end. This
one resolves none, and its caller says in which form lists and dictionaries are kept, so that a
file may be larger than the memory of the machine.

Source: CPython's Lib/pickletools.py, which documents the opcodes of protocols 0 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Protocol

from memplan.files.pickles import LONGEST_NUMBER, MOST_MARKS, BadPickleError

__all__ = ["HandedOverError", "NamingPickleError", "PlainReader", "Store", "on_one_line"]

_CHUNK_BYTES = 1 << 20
# No path, line or number that a tool writes comes near.
_LONGEST_BYTES = 1 << 26
# What an opcode takes at most beside a text of its own length.
_LONGEST_OPCODE = 16
# A stack of frames is a list of nothing but references, and most stacks are written often.
_REFERENCES = re.compile(rb"\x94\(((?:j[\x00-\xff]{4}|h[\x00-\xff])+)e")
_MOST_STACKS = 1 << 16
_UINT1, _UINT2, _INT4, _UINT4, _UINT8, _FLOAT = (
    struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q", ">d")
)
_NAMES = "it names {name}, which plain data never does, and was not run"
# What a dictionary is searched by. Tuples are hashed anew each time, and as deep as they nest.
_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
# Stands in the memo for what was handed over to the caller.
_GONE: Final = object()


def _by_code(handlers: Mapping[bytes, Any], otherwise: Any) -> list[Any]:
    """Return a handler for each of the 256 opcodes."""
    return [handlers.get(bytes([code]), otherwise) for code in range(256)]


class HandedOverError(BadPickleError):
    """A pickle that refers again to a dictionary that the store keeps in another form."""


def on_one_line(text: str, longest: int = 200) -> str:
    """Return a text of a file as a line may show it: not too long, of characters one can see.

    Args:
        text: of any kind, surrogates and control characters included.
        longest: characters of it that are kept.
    """
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class NamingPickleError(BadPickleError):
    """A pickle that names code or an object of another file; nothing was looked up."""


class Store(Protocol):
    """Says in which form what was read is kept."""

    def kept(self, read: dict[Any, Any]) -> object:
        """Return what stands for a dictionary after entries were added to it.

        If it is another object, the file may refer to the dictionary no more.
        """

    def extended(self, container: Any, items: list[Any]) -> object:
        """Return what stands for a list after items, at least one, were added to it.

        Where it is another object than a list, it stays the same when more is added. A list to
        which items come one by one is not handed over.
        """


class PlainReader:
    """Reads one pickle.

    Args:
        read: returns at most so many of the next bytes, none at the end.
        store: says in which form lists and dictionaries are kept.
    """

    def __init__(self, read: Callable[[int], bytes], store: Store) -> None:
        self._read = read
        self._store = store
        self._buffer = b""
        self._at = 0
        self._num_read = 0
        self._stack: list[Any] = []
        # Where the items of an open container start, and where the memo has it (-1: it has not).
        self._marks: list[tuple[int, int]] = []
        self._memo: list[Any] = []
        self._last_put = -1
        # Lists that the store keeps once, by the references that they were written as.
        self._shared: dict[bytes, Any] = {}
        self._last = -1
        self._is_done = False

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            BadPickleError: it is damaged, or holds more than containers, numbers and strings.
        """
        handlers = self._HANDLERS
        try:
            while not self._is_done:
                if self._at > self._last:
                    self._fill(_LONGEST_OPCODE)
                code = self._buffer[self._at]
                self._at += 1
                handlers[code](self)
            return self._stack.pop()
        except BadPickleError:
            raise
        except LookupError:
            raise BadPickleError("it is cut short or damaged") from None
        except (struct.error, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise BadPickleError(f"it is damaged: {on_one_line(str(error))}") from None

    def _fill(self, size: int) -> None:
        """Have so many bytes ahead, fewer only at the end of the file."""
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        while have < size and (data := self._read(_CHUNK_BYTES)):
            parts.append(data)
            have += len(data)
            self._num_read += len(data)
        self._buffer, self._at = b"".join(parts), 0
        self._last = have - _LONGEST_OPCODE

    def _take(self, size: int) -> bytes:
        """Return the next bytes, exactly so many."""
        if not 0 <= size <= _LONGEST_BYTES:
            raise BadPickleError(f"it declares a text or number of {size} bytes")
        if self._at + size > len(self._buffer):
            self._fill(size)
        data = self._buffer[self._at : self._at + size]
        if len(data) < size:
            raise BadPickleError("it is cut short")
        self._at += size
        return data

    def _line(self) -> bytes:
        """Return the next line without its end."""
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            have = len(self._buffer) - self._at
            self._fill(have + 1)
            if len(self._buffer) == have or have > _LONGEST_BYTES:
                raise BadPickleError("it is cut short, or has a line without an end")
        line = self._buffer[self._at : end]
        self._at = end + 1
        return line

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self._buffer, self._at)
        self._at += form.size
        return number

    def _push(self, value: object) -> None:
        self._stack.append(value)

    # Numbers and texts.

    def _int1(self) -> None:
        self._stack.append(self._buffer[self._at])
        self._at += 1

    def _fixed(self, form: struct.Struct) -> None:
        self._push(self._number(form))

    def _text(self, size: struct.Struct) -> None:
        self._push(str(self._take(self._number(size)), "utf-8", "surrogatepass"))

    def _text_line(self) -> None:
        self._push(str(self._line(), "raw-unicode-escape"))

    def _bytes(self, size: struct.Struct) -> None:
        self._push(self._take(self._number(size)))

    def _long1(self) -> None:
        begin = self._at + 1
        self._at = begin + self._buffer[begin - 1]
        if self._at > len(self._buffer):
            self._at = begin
            data = self._take(self._buffer[begin - 1])
        else:
            data = self._buffer[begin : self._at]
        self._stack.append(int.from_bytes(data, "little", signed=True))

    def _long4(self) -> None:
        size = self._number(_INT4)
        if size > LONGEST_NUMBER:
            raise BadPickleError(f"it declares a number of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _int_text(self) -> None:
        line = self._line()
        self._push(line == b"01" if line in (b"00", b"01") else int(line))

    def _long_text(self) -> None:
        self._push(int(self._line().rstrip(b"L")))

    def _float_text(self) -> None:
        self._push(float(self._line()))

    # Memo.

    def _memoize(self) -> None:
        self._last_put = len(self._memo)
        self._memo.append(self._stack[-1])

    def _put(self, place: int) -> None:
        known = len(self._memo)
        if not 0 <= place <= self._num_read:
            raise BadPickleError("it numbers more objects than it has room for")
        if place < known:
            self._shared.clear()
            self._memo[place] = self._stack[-1]
        else:
            self._memo += [_GONE] * (place - known)
            self._memo.append(self._stack[-1])
        self._last_put = place

    def _put1(self) -> None:
        self._at += 1
        self._put(self._buffer[self._at - 1])

    def _known(self, place: int) -> Any:
        if place < 0 or (value := self._memo[place]) is _GONE:
            raise HandedOverError(
                "it refers to what it does not hold, or holds as an entry already"
            )
        return value

    def _get1(self) -> None:
        self._stack.append(self._known(self._buffer[self._at]))
        self._at += 1

    def _get4(self) -> None:
        self._stack.append(
            self._known(int.from_bytes(self._buffer[self._at : self._at + 4], "little"))
        )
        self._at += 4

    def _get_line(self) -> None:
        self._push(self._known(int(self._line())))

    # Containers.

    def _empty_list(self) -> None:
        found = _REFERENCES.match(self._buffer, self._at)
        if found is None:
            self._stack.append([])
            return
        text = found[1]
        kept = self._shared.get(text)
        if kept is None:
            places = _places(text)
            container: list[Any] = []
            if max(places) == len(self._memo):  # it holds itself
                self._stack.append(container)
                return
            kept = self._store.extended(container, [self._known(at) for at in places])
            if kept is not container:
                if len(self._shared) >= _MOST_STACKS:
                    self._shared.clear()
                self._shared[text] = kept
        self._at = found.end()
        self._memo.append(kept)
        self._stack.append(kept)

    def _mark(self) -> None:
        put = self._last_put
        is_put = bool(self._stack) and put >= 0 and self._memo[put] is self._stack[-1]
        self._marks.append((len(self._stack), put if is_put else -1))
        if len(self._marks) > MOST_MARKS:
            raise BadPickleError(f"it is nested more than {MOST_MARKS} deep")

    def _items(self) -> tuple[list[Any], int]:
        """Return what came since the last mark, and the place of the container below it."""
        begin, place = self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items, place

    def _appends(self) -> None:
        items, place = self._items()
        container = self._stack[-1]
        kept = self._store.extended(container, items) if items else container
        if kept is not container:
            self._stack[-1] = kept
            if place >= 0:
                self._memo[place] = kept

    def _append(self) -> None:
        item = self._stack.pop()
        container = self._stack[-1]
        if type(container) is list:
            container.append(item)  # the memo has this very list, who knows where
        elif self._store.extended(container, [item]) is not container:
            raise BadPickleError("it adds to a list that was complete")

    def _set_items(self) -> None:
        items, place = self._items()
        read = self._stack[-1]
        if type(read) is not dict or len(items) % 2:
            raise BadPickleError("it is damaged: entries of what is no dictionary")
        read.update(_entries(items))
        kept = self._store.kept(read)
        if kept is not read:
            self._stack[-1] = kept
            if place >= 0:
                self._memo[place] = _GONE

    def _set_item(self) -> None:
        entry = [self._stack.pop(-2), self._stack.pop()]
        read = self._stack[-1]
        if type(read) is not dict:
            raise BadPickleError("it is damaged: an entry of what is no dictionary")
        read.update(_entries(entry))

    def _list(self) -> None:
        items, _ = self._items()
        self._push(self._store.extended([], items) if items else [])

    def _dict(self) -> None:
        items, _ = self._items()
        self._push(dict(_entries(items)))

    def _tuple(self) -> None:
        self._push(tuple(self._items()[0]))

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise BadPickleError("it is damaged: a tuple of more than there is")
        del self._stack[-count:]
        self._push(items)

    def _pop(self) -> None:
        self._stack.pop()

    def _stop(self) -> None:
        self._is_done = True

    # What is refused.

    def _global(self) -> None:
        module, name = (self._line().decode(errors="replace") for _ in range(2))
        raise NamingPickleError(_NAMES.format(name=on_one_line(f"{module}.{name}")))

    def _stack_global(self) -> None:
        module, name = self._stack[-2:]
        if type(module) is not str or type(name) is not str:
            raise NamingPickleError(_NAMES.format(name="what is no name"))
        raise NamingPickleError(_NAMES.format(name=on_one_line(f"{module}.{name}")))

    def _outside(self) -> None:
        raise NamingPickleError("it refers to an object outside the file")

    def _refused(self) -> None:
        code = self._buffer[self._at - 1]
        raise BadPickleError(f"it has opcode {code:#04x}, which plain data never has")

    _HANDLERS: ClassVar[list[Callable[[PlainReader], None]]] = _by_code(
        {
            b"\x80": lambda self: self._take(1),  # the protocol
            b"\x95": lambda self: self._take(8),  # bytes of a frame, which need not be known
            b".": _stop,
            b"0": _pop,
            b"(": _mark,
            b"1": _items,
            b"}": lambda self: self._push({}),
            b"]": _empty_list,
            b")": lambda self: self._push(()),
            b"d": _dict,
            b"l": _list,
            b"t": _tuple,
            b"\x85": lambda self: self._tuple_of(1),
            b"\x86": lambda self: self._tuple_of(2),
            b"\x87": lambda self: self._tuple_of(3),
            b"a": _append,
            b"e": _appends,
            b"s": _set_item,
            b"u": _set_items,
            b"N": lambda self: self._push(None),
            b"\x88": lambda self: self._push(True),
            b"\x89": lambda self: self._push(False),
            b"K": _int1,
            b"M": lambda self: self._fixed(_UINT2),
            b"J": lambda self: self._fixed(_INT4),
            b"\x8a": _long1,
            b"\x8b": _long4,
            b"I": _int_text,
            b"L": _long_text,
            b"F": _float_text,
            b"G": lambda self: self._fixed(_FLOAT),
            b"\x8c": lambda self: self._text(_UINT1),
            b"X": lambda self: self._text(_UINT4),
            b"\x8d": lambda self: self._text(_UINT8),
            b"V": _text_line,
            b"C": lambda self: self._bytes(_UINT1),
            b"B": lambda self: self._bytes(_UINT4),
            b"\x8e": lambda self: self._bytes(_UINT8),
            b"\x94": _memoize,
            b"p": lambda self: self._put(int(self._line())),
            b"q": _put1,
            b"r": lambda self: self._put(self._number(_UINT4)),
            b"g": _get_line,
            b"h": _get1,
            b"j": _get4,
            b"c": _global,
            b"\x93": _stack_global,
            b"P": _outside,
            b"Q": _outside,
        },
        _refused,
    )


def _entries(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Return keys and values that stand by turns."""
    keys = items[::2]
    if not _KEYS.issuperset(map(type, keys)):
        raise BadPickleError("it has an entry whose key is neither a text nor a number")
    return zip(keys, items[1::2], strict=True)


def _places(text: bytes) -> list[int]:
    """Return the places in the memo that a list of references names."""
    places, at = [], 0
    while at < len(text):
        size = 5 if text[at] == ord("j") else 2
        places.append(int.from_bytes(text[at + 1 : at + size], "little"))
        at += size
    return places
