"""Files written whole or not at all, through a name that nobody can foresee or have taken."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from memplan.errors import BadInputError

_SUFFIX = ".partial"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, which takes the place of `path` once it is whole and on the disk.

    It is made in the same folder, exclusively and under a random name, so that a link laid there
    beforehand is not followed; a link at `path` itself is replaced and what it names stays. What
    is there and no regular file (a terminal, /dev/full) is written to as it is.

    Raises:
        OSError: it cannot be written; nothing is left behind and `path` is as it was.
    """
    if _is_special(path):
        # Without this a pipe that nobody reads would be waited for.
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as file:
            yield file
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}."[:100], suffix=_SUFFIX)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~_umask())
            yield file
            file.flush()
            os.fsync(handle)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 as `replaced` does.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    with replaced(path) as file:
        file.write(text.encode())


def drop_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that is now only ours."""
    for partial in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            partial.unlink()


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _umask() -> int:
    """Return the process's mask without changing it, which would race with other threads."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def _sync(directory: Path) -> None:
    """Make the renaming itself durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(paths: Iterable[Path | None], *, force: bool) -> None:
    """Refuse before any work is done to overwrite a file or write into a folder that is not there.

    Raises:
        BadInputError: a file exists and `force` is False, or its folder does not exist.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise BadInputError(f"{path} is a folder. Give the path of a file.")
        if path.exists() and not force:
            raise BadInputError(f"{path} exists. Give another path, or --force to overwrite it.")
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise BadInputError(f"{path.parent} is no folder, so {path} cannot be written there.")


def numbered_folder(project: Path, name: str, *, exist_ok: bool) -> Path:
    """Return a new folder of a project: `name`, or `name2`, `name3`... where that is taken.

    Args:
        project: made if need be.
        name: of the folder.
        exist_ok: take `project/name` even where it is there.

    Raises:
        BadInputError: the folder cannot be made.
    """
    number = 1
    while True:
        path = project / (name if number == 1 else f"{name}{number}")
        try:
            path.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:
                raise BadInputError(f"{path} is a file. Give another --name.") from None
            number += 1
            continue
        except OSError as error:
            raise BadInputError(
                f"{path} cannot be made: {error.strerror}. Give another --project."
            ) from None
        return path
