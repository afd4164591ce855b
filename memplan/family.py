"""What a package registers under the entry-point group `memplan.workloads`: a family of models.

A family is an object; the entry point names it, and its own name becomes what users type before a
colon: `family:name`. Subclass `Family`, or write a class with the same members. A function from
name and keyword arguments to a workload is a family that lists no names and reads no files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from memplan.workload import Workload


@runtime_checkable
class Family(Protocol):
    """Models that one package makes, by name or from a description's file."""

    names_are_plain: bool = False
    """Whether making `family:NAME` runs no code of the user's for any NAME of letters, digits,
    dots, dashes and underscores, so that a file may hold that name too."""
    imported_when_used: Sequence[str] = ()
    """Modules that its workloads import when first used; processes that record load them early."""

    @abstractmethod
    def make(self, name: str, **arguments: Any) -> Workload:
        """Return the workload of a name.

        Args:
            name: one of `names()`, the path of a file that it `reads`, or whatever a user typed
                after `family:`.
            **arguments: those of what `made_by` returns; others have been refused.

        Raises:
            UnknownNameError: no such name; the nearest is suggested.
            BadInputError: the file cannot be used, or an argument is out of its range.
        """

    def names(self) -> Sequence[str]:
        """Return the names that users may type with no family before them; none by default."""
        return ()

    def reads(self, path: Path) -> bool:
        """Return whether a YAML file is a model's description for this family; no by default.

        Every family is asked of every such file, also of one from elsewhere: look at its
        content through `memplan.files`, import nothing heavy and run nothing. A file with a fault
        in it is still the family's, whose `make` then says what is wrong.

        Args:
            path: a regular file, YAML by its name, within the bounds of `memplan.files`.

        Raises:
            BadInputError: the file cannot be read at all.
        """
        del path
        return False

    def made_by(self, name: str) -> Callable[..., Workload]:
        """Return the class or function whose arguments, after the name, `make` takes.

        By default `make` itself, and thus any argument.

        Raises:
            UnknownNameError: no such name.
        """
        del name
        return self.make
