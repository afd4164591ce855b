"""PyTorch's grammar for allocator option strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from memplan.errors import UsageError
from memplan.units import MIB

_TOKEN = re.compile(r"[,:\[\]]|[^,:\[\]]+")


@dataclass
class Options:
    """What an option string says so far; bytes, with None for "not set"."""

    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int | None = None
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: list[int] = field(default_factory=lambda: [0] * 16)
    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    memory_fraction: float | None = None
    throw_on_cudamalloc_oom: bool = False


@dataclass(frozen=True)
class _Entry:
    """One `key:value` of the string; a list value has several items."""

    key: str
    items: tuple[str, ...]
    is_list: bool
    torch_version: tuple[int, int]

    def refuse(self, allowed: str) -> UsageError:
        """Return the error that names this option, its value and what PyTorch allows."""
        value = "[" + ",".join(self.items) + "]" if self.is_list else self.items[0]
        return UsageError(
            f"Allocator option {self.key}:{value} is out of range. PyTorch "
            f"{_version(self.torch_version)} allows {allowed}."
        )

    def whole(self, allowed: str) -> int:
        """Return the value as a whole number."""
        if self.is_list or not self.items[0].isdecimal():
            raise self.refuse(allowed)
        return int(self.items[0])

    def number(self, allowed: str) -> float:
        """Return the value as a decimal number."""
        try:
            return float("nan" if self.is_list else self.items[0])
        except ValueError:
            raise self.refuse(allowed) from None

    def boolean(self) -> bool:
        """Return the value as PyTorch spells booleans."""
        if self.is_list or self.items[0] not in {"True", "False"}:
            raise self.refuse("True or False, spelt so")
        return self.items[0] == "True"


def read_options(text: str, torch_version: tuple[int, int], options: Options) -> None:
    """Apply an option string to `options`, left to right as PyTorch does.

    `large_segment_size_mb` comes first wherever it stands: it bounds two other options.

    Raises:
        UsageError: a key the release does not know, or a value outside its range.
    """
    entries = _entries(text, torch_version)
    for entry in sorted(entries, key=lambda entry: entry.key != "large_segment_size_mb"):
        known = _READERS.get(entry.key)
        if known is None:
            raise UsageError(
                f"Allocator option {entry.key!r} is unknown. The options are: "
                f"{', '.join(sorted(_READERS))}."
            )
        since, reader = known
        if torch_version < since:
            raise UsageError(
                f"Allocator option {entry.key!r} needs PyTorch {_version(since)} or later, "
                f"not {_version(torch_version)}. Leave it out."
            )
        reader(entry, options)


def _entries(text: str, torch_version: tuple[int, int]) -> list[_Entry]:
    """Return the `key:value` pairs of an option string."""
    tokens = _TOKEN.findall("".join(text.split()))
    entries = []
    at = 0
    while at < len(tokens):
        key = tokens[at]
        if key in ",:[]" or tokens[at + 1 : at + 2] != [":"] or at + 2 >= len(tokens):
            raise _malformed(text, key)
        end = at + 3
        if tokens[at + 2] == "[":
            if "]" not in tokens[at:]:
                raise _malformed(text, key)
            end = tokens.index("]", at) + 1
            items = tuple("".join(tokens[at + 3 : end - 1]).split(","))
        elif tokens[at + 2] in ",:]":
            raise _malformed(text, key)
        else:
            items = (tokens[at + 2],)
        entries.append(_Entry(key, items, tokens[at + 2] == "[", torch_version))
        if end < len(tokens) and tokens[end] != ",":
            raise _malformed(text, key)
        at = end + 1
    return entries


def _malformed(text: str, key: str) -> UsageError:
    return UsageError(
        f"Allocator options {text!r} cannot be read at {key!r}. Write them as "
        "key:value,key:value such as expandable_segments:True,max_split_size_mb:64."
    )


def _version(torch_version: tuple[int, int]) -> str:
    return f"{torch_version[0]}.{torch_version[1]}"


def _mebibytes_at_least(entry: _Entry, minimum: int) -> int:
    """Return a size option's bytes; up to PyTorch 2.9 its minimum itself was refused."""
    strict = entry.torch_version <= (2, 9)
    allowed = f"{'more than' if strict else 'at least'} {minimum} (MiB)"
    value = entry.whole(allowed)
    if value < minimum or (strict and value == minimum):
        raise entry.refuse(allowed)
    return value * MIB


def _max_split(entry: _Entry, options: Options) -> None:
    options.max_split_bytes = _mebibytes_at_least(entry, options.large_segment_bytes // MIB)


def _max_non_split_rounding(entry: _Entry, options: Options) -> None:
    minimum = options.large_segment_bytes // MIB
    options.max_non_split_rounding_bytes = _mebibytes_at_least(entry, minimum)


def _large_segment(entry: _Entry, options: Options) -> None:
    value = entry.whole("more than 10 (MiB)")
    if value <= 10:
        raise entry.refuse("more than 10 (MiB)")
    options.large_segment_bytes = value * MIB
    options.max_non_split_rounding_bytes = None


def _garbage_collection(entry: _Entry, options: Options) -> None:
    value = entry.number("a number above 0 and below 1")
    if not 0.0 < value < 1.0:
        raise entry.refuse("a number above 0 and below 1")
    options.garbage_collection_threshold = value


def _memory_fraction(entry: _Entry, options: Options) -> None:
    value = entry.number("a number from 0 to 1")
    if not 0.0 <= value <= 1.0:
        raise entry.refuse("a number from 0 to 1")
    options.memory_fraction = value


def _expandable(entry: _Entry, options: Options) -> None:
    options.expandable_segments = entry.boolean()


def _throw_on_oom(entry: _Entry, options: Options) -> None:
    options.throw_on_cudamalloc_oom = entry.boolean()


def _no_effect(entry: _Entry, _options: Options) -> None:
    """Check a switch of pinned host memory or of locking: a replay does not see it."""
    entry.boolean()


def _register_threads(entry: _Entry, _options: Options) -> None:
    allowed = "a power of two up to 128"
    if not 1 <= entry.whole(allowed) <= 128 or entry.whole(allowed).bit_count() != 1:
        raise entry.refuse(allowed)


def _host_segment(entry: _Entry, _options: Options) -> None:
    entry.whole("a whole number (MiB)")


def _backend(entry: _Entry, _options: Options) -> None:
    if entry.items != ("native",):
        raise entry.refuse("backend:native and cudaMallocAsync; only native can be simulated")


def _roundup(entry: _Entry, options: Options) -> None:
    table = options.roundup_power2_divisions
    if not entry.is_list:
        if entry.items[0] == "0":
            raise entry.refuse("divisions that are a power of two; 0 only in a list")
        table[:] = [_divisions(entry, entry.items[0])] * 16
        return
    last = None
    for item in entry.items:
        key, _, value = item.partition(":")
        divisions = _divisions(entry, value)
        if key == ">":
            # PyTorch up to 2.9 starts at the last named entry itself and overwrites it.
            shift = 0 if entry.torch_version <= (2, 9) else 1
            start = 0 if last is None else last + shift
            table[start:] = [divisions] * len(table[start:])
            continue
        index = _interval(entry, key)
        if last is None:
            table[:index] = [divisions] * index
        table[index] = divisions
        last = index


def _interval(entry: _Entry, key: str) -> int:
    """Return the table entry that a list key, a power of two in MiB, addresses."""
    if not key.isdecimal() or int(key).bit_count() != 1:
        raise entry.refuse("sizes that are powers of two (MiB) and '>'")
    return min(int(key).bit_length() - 1, 15)


def _divisions(entry: _Entry, text: str) -> int:
    if not text.isdecimal() or int(text).bit_count() > 1:
        raise entry.refuse("divisions that are a power of two, or 0 for off")
    return int(text)


_Reader = Callable[[_Entry, Options], None]

_READERS: dict[str, tuple[tuple[int, int], _Reader]] = {
    "backend": ((2, 0), _backend),
    "expandable_segments": ((2, 1), _expandable),
    "garbage_collection_threshold": ((2, 0), _garbage_collection),
    "graph_capture_record_stream_reuse": ((2, 9), _no_effect),
    "large_segment_size_mb": ((2, 11), _large_segment),
    "max_non_split_rounding_mb": ((2, 6), _max_non_split_rounding),
    "max_split_size_mb": ((2, 0), _max_split),
    "per_process_memory_fraction": ((2, 10), _memory_fraction),
    "pinned_num_register_threads": ((2, 1), _register_threads),
    "pinned_reserve_segment_size_mb": ((2, 9), _host_segment),
    "pinned_use_background_threads": ((2, 6), _no_effect),
    "pinned_use_cuda_host_register": ((2, 1), _no_effect),
    "release_lock_on_cudamalloc": ((2, 0), _no_effect),
    "roundup_power2_divisions": ((2, 0), _roundup),
    "throw_on_cudamalloc_oom": ((2, 12), _throw_on_oom),
}
