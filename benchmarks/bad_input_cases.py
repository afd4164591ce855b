"""Files and command lines that nobody should give, made from good ones by seeded changes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from memplan.cli import cli

Content = bytes
NUMBER = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
NUMBERS: tuple[bytes, ...] = (
    b"0", b"-1", b"1000000000", b"18446744073709551616", b"nan", b".nan", b"-.inf", b"1e400",
    b"0.5", b"null", b"''", b"[]", b"{}", b"true", b"1" * 5000, b"2024-02-30", b"!!int x",
    b"~nobody/x", b'"\\u0000"',
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e9, 10**9, 2**64, -(2**63), 0.5, float("nan"), float("inf"), "", "x",
    "\0", "a" * 5000, [], {}, [None], [[]], {"a": {}}, "../../x", "/dev/zero", "~nobody/x",
    "evil_mod:factory", "\u202e",
)  # fmt: skip
YAML_ODDITIES: tuple[bytes, ...] = (
    b"a: 2024-02-30\n", b"a: !!int x\n", b"a: !!bool x\n", b"a: !!timestamp x\n", b"? [a]\n: b\n",
    b"a: !!python/object/apply:os.system ['touch ran']\n", b"&a [*a]\n", b"a: &b {c: *b}\n",
    b"a: *nowhere\n", b"<<: 3\n", b"<<: [1]\n", b"a: !!binary x\n", b"a: !!set {1, 2}\n",
    b"[" * 20000, b"{" * 20000, b"a: " + b"1:" * 20000 + b"1\n", b"%YAML 9.9\n---\na: 1\n",
    b"---\na: 1\n---\nb: 2\n", b"a: 1\na: 2\n", b"\t- x\n", b"- " * 3000 + b"x\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 110)
    ),
)  # fmt: skip
SPECIALS = ("pipe", "folder", "zero", "empty", "missing", "loop", "null")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of a command.

    `arguments` may hold `{file}`, where the bad file is laid.
    """

    kind: str
    change: str
    arguments: tuple[str, ...]
    content: Content | None = None
    special: str = ""
    place: str = ""
    """Where the file is laid, relative to the working directory."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: a good one, and the command that reads it and ends soon."""

    name: str
    content: Content
    place: str
    arguments: tuple[str, ...]
    share: float = 1.0
    """Of the mutations, beside other kinds."""
    structured: tuple[Callable[[Content, random.Random], Content], ...] = field(default=())
    """Changes that keep the file's format whole."""


def _flip(content: Content, draw: random.Random) -> Content:
    data = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _cut(content: Content, draw: random.Random) -> Content:
    return content[: draw.randrange(len(content))]


def _drop(content: Content, draw: random.Random) -> Content:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 200) :]


def _double(content: Content, draw: random.Random) -> Content:
    start = draw.randrange(len(content))
    part = content[start : start + draw.randint(1, 400)]
    return content[:start] + part * draw.randint(2, 50) + content[start:]


def _insert(content: Content, draw: random.Random) -> Content:
    start = draw.randrange(len(content) + 1)
    odd = draw.choice([b"\0", b"\xff\xfe", b"\xed\xa0\x80", draw.randbytes(20), b"\x1b[2J", b"\r"])
    return content[:start] + odd + content[start:]


def _number(content: Content, draw: random.Random) -> Content:
    found = list(NUMBER.finditer(content))
    if not found:
        return _insert(content, draw)
    one = draw.choice(found)
    return content[: one.start()] + draw.choice(NUMBERS) + content[one.end() :]


def _encode(content: Content, draw: random.Random) -> Content:
    text = content.decode("latin-1")
    return draw.choice([text.encode("utf-16"), text.encode("utf-32"), b"\xef\xbb\xbf" + content])


BYTES = (_flip, _cut, _drop, _double, _insert, _number, _encode)


def odd_yaml(content: Content, draw: random.Random) -> Content:
    """Return a YAML text with something in it that readers have choked on."""
    odd = draw.choice(YAML_ODDITIES)
    return draw.choice([odd, content + b"\n" + odd, odd + content])


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from _paths(item, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """Return plain containers with something in them replaced, dropped or renamed."""
    value = copy.deepcopy(value)
    path = draw.choice(list(_paths(value)))
    if not path:
        return draw.choice(VALUES)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    action = draw.choice(["replace", "replace", "drop", "rename"])
    if action == "drop":
        del holder[path[-1]]
    elif action == "rename" and isinstance(holder, dict):
        holder["surplus"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = draw.choice(VALUES)
    return value


def change_json(content: Content, draw: random.Random) -> Content:
    """Return a JSON text with a value changed and no checksum that would tell."""
    value = json.loads(content)
    if isinstance(value, dict):
        value.pop("checksum", None)
    return json.dumps(changed(value, draw)).encode("utf-8", "surrogatepass")


def change_yaml(content: Content, draw: random.Random) -> Content:
    """Return a YAML text with a value changed."""
    return yaml.safe_dump(changed(yaml.safe_load(content), draw)).encode()


def change_npz(content: Content, draw: random.Random) -> Content:
    """Return an archive of arrays, its checksums right, with a number or a header changed."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if draw.random() < 0.3:
        header = json.loads(arrays["header"].tobytes())
        text = json.dumps(changed(header, draw)).encode("utf-8", "surrogatepass")
        arrays["header"] = np.frombuffer(text, np.uint8)
    else:
        name = draw.choice([name for name in arrays if name != "header" and arrays[name].size])
        arrays[name] = _odd_array(arrays[name].copy(), draw)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _odd_array(array: Any, draw: random.Random) -> Any:
    how = draw.randrange(5)
    if how == 0:
        return array.astype(draw.choice([np.float64, np.int64, np.complex64, np.bool_]))
    if how == 1:
        return array.reshape(-1, 1) if draw.random() < 0.5 else array[:-1]
    least, most = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    for _ in range(draw.randint(1, 20)):
        array[draw.randrange(len(array))] = draw.choice([least, -1, 0, 1, most, most - 1])
    return array


def change_zip(content: Content, draw: random.Random) -> Content:
    """Return a zip file, its checksums right, with members dropped, renamed or cut."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    part = members.pop(name)
    how = draw.randrange(4)
    if how == 0:
        members[name + "x"] = part
    elif how > 1:
        members[name] = draw.choice(BYTES)(part or b"x", draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as made:
        for key, value in members.items():
            made.writestr(key, value)
    return buffer.getvalue()


def change_checkpoint(content: Content, draw: random.Random) -> Content:
    """Return a checkpoint as PyTorch writes it with a value of it changed."""
    import torch

    value = torch.load(io.BytesIO(content), weights_only=True)
    part = draw.choice(["", "", "options", "optimizer", "random_states", "model", "metrics"])
    if part:
        value[part] = changed(value[part], draw)
    else:
        value[draw.choice(list(value))] = draw.choice(VALUES)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def change_pickle(content: Content, draw: random.Random) -> Content:
    """Return a pickle with opcodes that ask for more than there is."""
    start = draw.randrange(2, len(content))
    odd = draw.choice([b"r" + struct.pack("<I", 2**31), b"\x8e" + struct.pack("<Q", 2**40),
                       b"(" * 5000, b"cos\nsystem\n", b"h\xff", b"0", b"}" * 50, b"R"])  # fmt: skip
    return content[:start] + odd + content[start:]


def file_cases(kinds: list[Kind], count: int, seed: int) -> Iterator[Case]:
    """Yield so many cases of bad files, and each kind laid as something that is no file."""
    draw = random.Random(seed)
    for kind in kinds:
        for special in SPECIALS:
            yield Case(kind=kind.name, change=special, arguments=kind.arguments, special=special,
                       place=kind.place)  # fmt: skip
    weights = [kind.share for kind in kinds]
    for _ in range(count):
        [kind] = draw.choices(kinds, weights)
        change = draw.choice([*BYTES, *kind.structured * 4])
        yield Case(kind=kind.name, change=change.__name__.strip("_"), arguments=kind.arguments,
                   content=change(kind.content, draw), place=kind.place)  # fmt: skip


WORDS = (
    "", "-1", "0", "1", "nan", "inf", "-inf", "1e9", "1000000000", "18446744073709551616",
    "9" * 5000, "a" * 300, "a/" * 3000, "..", "/", "/dev/zero", "/dev/full", "/dev/null",
    "/proc/self/mem", "~nobody/x", "\udcff", "\u202e", "a\0b", "a b", "%s", "{}", "[]", "1:2:3",
    "1:1000000000", "64:1", "0x10", "1_000", "evil_mod:factory", "official:.", "torchvision:",
    "auto", "none", "all", ",", "=", "a=2024-02-30", "a=!!int x", "a=" + "[" * 5000, "\n", "²",
)  # fmt: skip


def command_cases(bases: dict[str, tuple[str, ...]], seed: int, count: int) -> Iterator[Case]:
    """Yield so many command lines: each option of each command with words it does not expect.

    Args:
        bases: by command, arguments that make it end soon whatever else is given.
        seed: of the words.
        count: at least each option once.
    """
    draw = random.Random(seed)
    context = click.Context(cli)
    options = []
    for name in bases:
        command = cli.get_command(context, name)
        assert command is not None
        options += [(name, one) for one in command.params]
    chosen = [*options, *draw.choices(options, k=max(0, count - len(options)))]
    for name, parameter in chosen[:count]:
        word = draw.choice(WORDS)
        typed = [word] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
        if isinstance(parameter, click.Option) and not parameter.is_flag:
            typed.append(word)
        yield Case(
            kind=f"memplan {name}",
            change=parameter.name or "",
            arguments=(name, *bases[name], *typed),
        )


@contextlib.contextmanager
def laid(case: Case) -> Iterator[None]:
    """Have a case's file where its command looks for it, and what was there back afterwards."""
    path = Path(case.place)
    before = path.read_bytes() if case.place and path.is_file() else None
    if case.place:
        _lay(case, path)
    yield
    if case.place:
        _remove(path)
    if before is not None:
        path.write_bytes(before)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)


def _lay(case: Case, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(path)
    makers: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "zero": lambda: path.symlink_to("/dev/zero"),
        "null": lambda: path.symlink_to("/dev/null"),
        "loop": lambda: path.symlink_to(path.name),
        "empty": path.touch,
        "missing": lambda: None,
    }
    if case.special:
        makers[case.special]()
    else:
        path.write_bytes(case.content or b"")
