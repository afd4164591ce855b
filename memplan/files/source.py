"""One file to be read: a regular one, of bounded size, its text in UTF-8, its YAML bounded."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memplan.errors import BadInputError, MemplanError
from memplan.units import format_bytes

MIB = 1 << 20

# Read by kind of `stat`, in the words of the message that refuses it.
_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a pipe"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)


def is_there(path: Path) -> bool:
    """Return whether there is anything at a path; there is nothing at one that can be no path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether there is a regular file at a path."""
    return is_there(path) and path.is_file()


def brief(value: object) -> str:
    """Return a value as a message shows it: one line, and not much of it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a number of thousands of digits has no text
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that somebody else may have made, and what is said of it when it cannot be used.

    Raises:
        MemplanError: from every method, of the class `error`; one line that names the file.
    """

    path: Path
    what: str
    """What it should be, with its article: `a plan`."""
    way_out: str = ""
    """A sentence: what to do instead."""
    missing: str = "Check the path."
    """A sentence: what to do where there is no such file."""
    most_bytes: int = 64 * MIB
    """Larger files are refused before they are read."""
    any_encoding: bool = False
    """Whether text need not be UTF-8: its encoding is then guessed, and `encoding` says so."""
    error: type[MemplanError] = BadInputError

    @property
    def shown(self) -> str:
        """The path as it can be printed on one line."""
        text = str(self.path)
        text = text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"
        return text if text.isprintable() else repr(text)

    def bad(self, reason: object) -> MemplanError:
        """Return the error that says why the file cannot be used."""
        line = " ".join(str(reason).split()).rstrip(".:") or type(reason).__name__
        line = line if len(line) <= 300 else f"{line[:300]}..."
        end = f" {self.way_out}" if self.way_out else ""
        return self.error(f"{self.shown} cannot be read as {self.what}: {line}.{end}")

    def open(self) -> IO[bytes]:
        """Return the file, open for reading and known to be regular and small enough."""
        try:
            # Asked first: opening a device may do something, and opening a pipe waits for ever.
            self._check(os.stat(self.path))  # noqa: PTH116 - one call for both
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self.error(f"{self.shown} does not exist. {self.missing}") from None
        except OSError as error:
            raise self.bad(error.strerror or error) from None
        except ValueError:  # what Python says of a NUL in a path
            raise self.bad("a path cannot hold the character NUL") from None
        file = os.fdopen(handle, "rb")
        try:
            self._check(os.fstat(handle))
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            reason = next((text for is_kind, text in _KINDS if is_kind(found.st_mode)), "it is odd")
            raise self.bad(f"{reason}, not a regular file")
        if found.st_size > self.most_bytes:
            raise self.bad(
                f"it has {format_bytes(found.st_size)}, and such a file has at most "
                f"{format_bytes(self.most_bytes)}"
            )

    def content(self) -> bytes:
        """Return the bytes of the file."""
        with self.open() as file:
            try:
                content = file.read(self.most_bytes + 1)
            except OSError as error:
                raise self.bad(error.strerror or error) from None
        # Files of /proc say that they are empty, and a file may grow.
        if len(content) > self.most_bytes:
            raise self.bad(f"it has more than {format_bytes(self.most_bytes)}")
        return content

    def text(self) -> str:
        """Return the text of the file, a byte-order mark left out."""
        content = self.content()
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if not self.any_encoding:
                raise self.bad(f"it is no text in UTF-8 (byte {error.start})") from None
        return content.decode(_guessed(content), errors="replace")

    def encoding(self) -> str:
        """Return what `text` takes the file's encoding for: `utf-8`, or a guess."""
        content = self.content()
        try:
            content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return _guessed(content)
        return "utf-8"

    def yaml(self) -> Any:
        """Return the value of a YAML file: plain containers, numbers and texts, and dates."""
        from memplan.files.yaml_text import MOST_BYTES, NotYamlError, parse_yaml

        text = self.text()
        if len(text) > MOST_BYTES:
            raise self.bad(f"YAML of more than {format_bytes(MOST_BYTES)} is not read")
        try:
            return parse_yaml(text)
        except NotYamlError as error:
            raise self.bad(f"it is no YAML: {error}") from None


def _guessed(content: bytes) -> str:
    """Return the likeliest encoding of bytes that are not UTF-8; `utf-8` where none is likely."""
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()
    return "utf-8" if best is None else best.encoding
