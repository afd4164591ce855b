"""Plain values checked against a record's types: what a file says, before anything believes it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

if TYPE_CHECKING:
    from memplan.files.source import Source

T = TypeVar("T")


class NotStructuredError(ValueError):
    """Values that are not of the types expected; the message is a clause that says which."""


class Flat:
    """Base of records whose fields stand in files at the level of the record that holds them."""

    DERIVED: ClassVar[tuple[str, ...]] = ()
    """Properties that are written along, for those who read the file, and not read back."""


def flattened(value: Any) -> Any:
    """Return a record as dicts, tuples and plain values, as it stands in files."""
    if dataclasses.is_dataclass(value):
        found: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if isinstance(item, Flat):
                found |= flattened(item) | {name: getattr(item, name) for name in item.DERIVED}
            else:
                found[field.name] = flattened(item)
        return found
    if isinstance(value, dict):
        return {key: flattened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flattened(item) for item in value]
    return value


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def nested(values: Any, kind: Any) -> Any:
    """Return values as files hold them, with those of `Flat` records in a dict of their own."""
    if dataclasses.is_dataclass(kind) and isinstance(values, Mapping):
        rest, made = dict(values), {}
        for field in dataclasses.fields(kind):
            hint = _hints(kind)[field.name]  # type: ignore[arg-type]
            if isinstance(hint, type) and issubclass(hint, Flat):
                own = [one.name for one in dataclasses.fields(hint)]  # type: ignore[arg-type]
                made[field.name] = {name: rest.pop(name) for name in own if name in rest}
                for name in hint.DERIVED:
                    rest.pop(name, None)
            elif field.name in rest:
                made[field.name] = nested(rest.pop(field.name), hint)
        return made | rest
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        records = [one for one in arguments if one is not type(None)]
        return nested(values, records[0]) if len(records) == 1 and values is not None else values
    if isinstance(values, Mapping) and len(arguments) == 2:
        return {key: nested(item, arguments[1]) for key, item in values.items()}
    if (
        isinstance(values, list | tuple)
        and len(arguments) in {1, 2}
        and arguments[-1:]
        in {
            (...,),
            arguments[:1],
        }
    ):
        return [nested(item, arguments[0]) for item in values]
    return values


def converted(values: Any, kind: type[T], *, surplus: bool = False) -> T:
    """Return plain values as a record, every one of the type that the record declares.

    Numbers are never made of texts, nor whole numbers of fractions.

    Args:
        values: dicts, lists, texts and numbers, as JSON and checkpoints hold them.
        kind: a dataclass; what its `__post_init__` raises is why the values are refused.
        surplus: whether names that the record does not know are left out, or refused.

    Raises:
        NotStructuredError: a value is missing, or of another type or range; the message names it.
    """
    values = nested(values, kind)
    try:
        record = msgspec.convert(values, kind, dec_hook=_other)
    except msgspec.ValidationError as error:
        reason = str(error).replace(" - at `$", " at `").replace("Object missing", "missing")
        raise NotStructuredError(reason) from None
    except (RecursionError, ArithmeticError) as error:
        raise NotStructuredError(f"it is nested too deeply or too large ({error})") from None
    except (AssertionError, IndexError):
        raise NotStructuredError(f"its values make no {kind.__name__}") from None
    if not surplus and (name := _unknown(values, record)):
        raise NotStructuredError(f"unknown field {name!r}")
    return record


def _unknown(values: Any, record: Any) -> str | None:
    """Return a name in the values that the record, or a record in it, does not know."""
    if dataclasses.is_dataclass(record) and isinstance(values, Mapping):
        known = {field.name for field in dataclasses.fields(record)}
        if extra := set(values) - known:
            return str(min(extra, key=str))[:80]
        pairs = [(value, getattr(record, name)) for name, value in values.items()]
    elif isinstance(record, dict):
        pairs = [(values[key], item) for key, item in record.items() if key in values]
    elif isinstance(record, list | tuple):
        pairs = list(zip(values, record, strict=True))
    else:
        return None
    return next((found for pair in pairs if (found := _unknown(*pair)) is not None), None)


CHECKSUM = "checksum"


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return JSON-ready values with a checksum of theirs as the last."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(values: Any) -> Any:
    """Return values without their checksum, which agrees where there is one.

    Raises:
        NotStructuredError: the values are others than were written.
    """
    if not isinstance(values, dict) or CHECKSUM not in values:
        return values
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if values[CHECKSUM] != _checksum(rest):
        raise NotStructuredError(
            f"its checksum is wrong, so it was damaged or edited; if you edited it, remove its "
            f"line {CHECKSUM!r}"
        )
    return rest


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _other(kind: type[Any], value: Any) -> Any:
    """Return a value of a type that msgspec does not know."""
    if kind is Path and isinstance(value, str):
        if "\0" in value or len(value) > _LONGEST_PATH:
            raise ValueError("a path is too long or holds the character NUL")
        return Path(value)
    if isinstance(value, kind):
        return value
    raise ValueError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


_LONGEST_PATH = 4096  # Linux's PATH_MAX


def decoded(source: Source, content: bytes | None = None, *, part: str = "it") -> Any:
    """Return the value of a JSON file: dicts, lists, texts, numbers; no NaN, no infinity.

    Args:
        source: the file.
        content: a part of it; None takes all.
        part: what that part is called.

    Raises:
        MemplanError: of the source's class; the file cannot be read, or is no JSON.
    """
    content = source.content() if content is None else content
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise source.bad(f"{part} is no JSON ({error})") from None
    except RecursionError:
        raise source.bad(f"{part} is nested too deeply") from None
