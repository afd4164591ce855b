"""What every saved answer is: a record that is written with its schema and read back checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from memplan.errors import BadTapeError, UsageError
from memplan.files import converted
from memplan.files.structures import NotStructuredError, flattened

_MOST = 1 << 60
"""More than any number of bytes, images or operations in an answer."""


class Answer:
    """Base of the records that are saved as files of their own; a subclass is a dataclass."""

    SCHEMA: ClassVar[str]
    PLACES: ClassVar[Mapping[str, str]] = {}
    """Fields and properties that stand elsewhere in the file than under their own name, by place,
    such as `gpu.name`. Properties are written for those who read the file, and not read back."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready values, its schema first."""
        values: dict[str, Any] = flattened(self)
        placed: dict[str, Any] = {"schema": self.SCHEMA}
        for place, name in self.PLACES.items():
            group, _, key = place.rpartition(".")
            value = values.pop(name) if name in values else getattr(self, name)
            (placed.setdefault(group, {}) if group else placed)[key] = value
        return placed | values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the record that `to_json` described.

        Raises:
            BadTapeError: the schema is another one, or fields are missing.
        """
        schema = values.get("schema")
        if schema != cls.SCHEMA:
            raise BadTapeError(f"Schema {schema!r} is not {cls.SCHEMA!r}, which was expected here.")
        try:
            record = converted(cls._by_field(values), cls)
        except (NotStructuredError, UsageError) as error:
            reason = str(error).rstrip(".")
            raise BadTapeError(f"A {cls.SCHEMA} record is incomplete: {reason}.") from None
        _check_numbers(values)
        return record

    @classmethod
    def _by_field(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return a file's values by the names of the fields.

        Raises:
            NotStructuredError: something is not in its place, or there is more in it.
        """
        rest = {name: value for name, value in values.items() if name != "schema"}
        groups = {place.rpartition(".")[0] for place in cls.PLACES} - {""}
        for group in groups:
            if not isinstance(rest.get(group), dict):
                raise NotStructuredError(f"{group!r} is missing or holds no names")
            rest |= {f"{group}.{name}": value for name, value in rest.pop(group).items()}
        own = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        for place, name in cls.PLACES.items():
            if place not in rest:
                raise NotStructuredError(f"{place!r} is missing")
            value = rest.pop(place)
            if name in own:
                rest[name] = value
        return rest


def _check_numbers(value: Any) -> None:
    """Refuse numbers that no answer has: none is below 0 by more than bytes, none is endless."""
    if isinstance(value, dict):
        for item in value.values():
            _check_numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item)
    elif isinstance(value, int | float) and not -_MOST < value < _MOST:
        raise BadTapeError(f"The number {value} in it is larger than any that memplan writes.")
