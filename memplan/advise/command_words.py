"""A training command as people paste it, taken apart into variables, program and options.

What shells do with a line is undone here: continued lines, several commands in a row, redirections,
pipes, and paths of Windows. What is left out of the reading is named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from memplan.errors import UsageError

# Lines are continued by a backslash, in cmd.exe by a caret, in PowerShell by a backtick.
_CONTINUED = re.compile(r"[\\^`][ \t]*\r?\n")
_QUOTED = re.compile(r"""('[^']*'|"[^"]*")""")
_REDIRECTION = re.compile(r"(?:(?<=\s)\d|&)?>>?\s*(?:&\s*\d|[^\s|;&]+)|<\s*[^\s|;&]+")
_SEPARATORS = re.compile(r"&&|\|\||[;\n|&]")
# Of a pipe, only what stands before it trains.
_PIPE = re.compile(r"(?<!\|)\|(?!\|)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=.*", re.DOTALL)
_POWERSHELL = re.compile(r"\$env:([A-Za-z_][A-Za-z_0-9]*)\s*=\s*(.*)", re.IGNORECASE | re.DOTALL)
_BACKSLASH = re.compile(r"\\(?![\s'\"\\])")
_SETTERS = ("export", "set", "env", "setenv")
_HARMLESS = ("cd", "source", ".", "conda", "activate", "pushd", "clear", "echo", "sleep", "wait")
_LAUNCHERS = {"torchrun", "torch.distributed.launch", "torch.distributed.run"}
_SCRIPT = re.compile(r"train\w*\.py")


@dataclass(frozen=True, kw_only=True)
class Words:
    """The parts of a command."""

    variables: tuple[str, ...]
    """What is set in its environment, each `NAME=VALUE`, earlier commands of the line included."""
    program: tuple[str, ...]
    """Words up to the options, those of a launcher included."""
    options: tuple[str, ...]
    """Words after the script."""
    processes: int
    """Processes that a launcher starts on each machine; 1 without one."""
    left_out: tuple[str, ...] = ()
    """Commands of the line that were not read."""

    @property
    def is_ultralytics(self) -> bool:
        """Whether the options are `key=value`, of Ultralytics' command."""
        return PurePosixPath(self.program[-1]).name == "yolo"


def words_of(text: str) -> Words:
    """Return the parts of a pasted command.

    Raises:
        UsageError: nothing in it trains, or its quotes do not match.
    """
    variables: list[str] = []
    left_out: list[str] = []
    found: Words | None = None
    for command in _commands(text):
        words = _split(command, text)
        own, words = _variables(words)
        place = _script(words)
        if place is None:
            # A variable alone is the shell's; before another command it is that command's.
            if not words or (own and words[:1] == ["env"]):
                variables += own
            elif words[0] not in _HARMLESS:
                left_out.append(command.strip())
        elif found is None:
            program = tuple(words[: place + 1])
            found = Words(
                variables=(*variables, *own),
                program=program,
                options=tuple(words[place + 1 :]),
                processes=_processes(program),
            )
        else:
            left_out.append(command.strip())
    if found is None:
        raise UsageError(
            f"--fit {text.strip()!r} is no training command. Give one that begins with "
            "train_dual.py, memplan train or yolo train, in quotes."
        )
    return Words(**vars(found) | {"left_out": tuple(left_out)})


def _commands(text: str) -> Iterator[str]:
    """Yield the commands of a line, without what follows a pipe and without redirections."""
    pieces = _QUOTED.split(_CONTINUED.sub(" ", text))
    marked = [
        piece if place % 2 else _SEPARATORS.sub("\0", _PIPE.sub("\1", _REDIRECTION.sub(" ", piece)))
        for place, piece in enumerate(pieces)
    ]
    for command in "".join(marked).split("\0"):
        before = command.partition("\1")[0]
        if before.strip():
            yield before


def _split(command: str, text: str) -> list[str]:
    set_by_powershell = _POWERSHELL.fullmatch(command.strip())
    if set_by_powershell:
        name, value = set_by_powershell.groups()
        command = f"export {name}={value}"
    try:
        # A backslash before a letter is a path of Windows, which a shell would take for nothing.
        words = shlex.split(_BACKSLASH.sub(r"\\\\", command))
    except ValueError as error:
        raise UsageError(
            f"--fit {text.strip()!r} cannot be read: {error}. Check its quotes."
        ) from None
    return [word.replace("\\", "/") for word in words]


def _variables(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the variables that a command sets, and the words after them."""
    start = 1 if words and words[0] in _SETTERS else 0
    end = start
    while end < len(words) and _VARIABLE.fullmatch(words[end]):
        end += 1
    if end == start:
        return [], words
    return words[start:end], words[end:]


def _script(words: list[str]) -> int | None:
    """Return the place of the word after which options come; None where nothing trains."""
    for place, word in enumerate(words):
        name = PurePosixPath(word).name.removesuffix(".exe")
        if _SCRIPT.fullmatch(name):
            return place
        if name in {"memplan", "yolo"} and "train" in words[place + 1 : place + 3]:
            return words.index("train", place) if name == "memplan" else place
    return None


def _processes(program: tuple[str, ...]) -> int:
    """Return how many processes a launcher starts on a machine.

    Raises:
        UsageError: it is a launcher whose number is not stated in figures.
    """
    launcher = _LAUNCHERS & {PurePosixPath(word).name for word in program}
    if not launcher:
        return 1
    for place, word in enumerate(program):
        name, equals, value = word.replace("_", "-").partition("=")
        if name in {"--nproc-per-node", "--nproc-per-gpu"}:
            number = value if equals else program[place + 1]
            if number.isdecimal() and int(number) > 0:
                return int(number)
            raise UsageError(
                f"--fit: {word} {'' if equals else number} is no number of processes. Give it in "
                "figures, such as --nproc_per_node 2."
            )
    return 1
