"""Documentation is held to the program: command lines, options, links, and names of files."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import memplan
from memplan.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")])
LAUNCHERS = r"(?:torchrun [^`\n]*?-m |python -m )"
PLACEHOLDER = re.compile(r"^[A-Z][A-Z0-9_]*(\.[a-z]+)?(\.\.\.)?$|^\.\.\.$")


def _ids(path):
    return str(path.relative_to(ROOT))


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(text):
    """Return the lines of code blocks, indented or fenced without another language."""
    fenced = [body for language, body in FENCE.findall(text) if language in {"", "console", "sh"}]
    indented = [line[4:] for line in _prose(text).splitlines() if line.startswith("    ")]
    return [*"".join(fenced).splitlines(), *indented]


def _prose(text):
    return FENCE.sub("", text)


def _command_lines(text):
    """Return each line of a block that runs memplan, as words after its name."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(_blocks(text)))
    for line in joined.splitlines():
        found = re.match(rf"(?:\$ )?(?:[A-Z_]+=\S+ )*{LAUNCHERS}?memplan (.*)", line)
        if found:
            words = shlex.split(found.group(1), comments=True)
            yield line, [word for word in words if word not in {">", ">>", "|"}]


def _inline(text):
    """Return the words of `memplan ...` within a sentence."""
    for code in re.findall(r"`memplan ([^`]+)`", _prose(text)):
        yield code, code.split()


def _found(words):
    """Return a command, its name, and the words that are its own."""
    command, name = cli, "memplan"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command, info_name=name)
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, f"no command {name}"
    return command, name, words


def _unknown(command, words):
    """Return the options among words that the command does not have; values are passed over."""
    known = {"--help": False, "-h": False}
    for one in command.params:
        takes_value = isinstance(one, click.Option) and not (one.is_flag or one.count)
        known |= dict.fromkeys((*one.opts, *one.secondary_opts), takes_value)
    unknown, is_value = [], False
    for word in words:
        if word == "--":
            break
        if word.startswith("--") and not is_value:
            unknown += [] if word.partition("=")[0] in known else [word]
        is_value = not is_value and known.get(word, False)
    return unknown


def _refused(line, words):
    """Return why a command line is not one, or nothing.

    Values are checked by click as when the command is called; placeholders (`FILE`) only have to
    stand where a value stands.
    """
    command, name, own = _found(words)
    if unknown := _unknown(command, own):
        return f"{line}: no {', '.join(unknown)}"
    if isinstance(command, click.Group) or any(PLACEHOLDER.match(word) for word in own):
        return ""
    try:
        command.make_context(name, list(own))
    except click.exceptions.Exit:
        return ""  # --help
    except click.ClickException as error:
        return f"{line}: {error.format_message()}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_command_lines_can_be_typed(page):
    """Every command in a block exists with these options and values."""
    lines = list(_command_lines(page.read_text()))

    assert [] == [why for line, words in lines if (why := _refused(line, words))]


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_options_in_sentences_exist(page):
    """Every command within a sentence exists, and its options."""
    wrong = []
    for code, words in _inline(page.read_text()):
        if not re.match(r"[a-z]+$", words[0]):
            continue  # `memplan COMMAND --help`
        command, _, own = _found([word.split(",")[0] for word in words])
        wrong += [f"{code}: {one}" for one in _unknown(command, own)]

    assert [] == wrong


def _anchor(heading):
    """Return the fragment that a heading is found under on code hosts."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_links_resolve(page):
    """Links within the repository lead to files that it holds, and to headings of theirs."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists():
            wrong.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.*)$", goal.read_text(), re.MULTILINE)
            wrong += [] if fragment in map(_anchor, headings) else [target]

    assert [] == wrong


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_files_that_are_named_exist(page):
    """A path of the repository, wherever it is named, is there: `memplan/spec.py`, `tests/unit`."""
    code = re.findall(r"`([^`\n]+)`", _prose(page.read_text()))
    rooms = r"(?:memplan|models|benchmarks|tests|docs|scripts)/[\w./*]*"
    named = [one for one in code if re.fullmatch(rooms, one)]

    assert [] == [one for one in named if not list(ROOT.glob(one.rstrip("/")))]


def _example(page, command):
    """Return the output that a page shows under a command, without what it leaves out."""
    text = (ROOT / "docs" / page).read_text()
    body = re.search(rf"^    \$ {command}\n((?:    .*\n|\n)*)", text, re.MULTILINE).group(1)
    lines = [line.strip() for line in body.splitlines()]
    return [line for line in lines if line not in {"", "..."}]


def test_the_catalogue_prints_what_is_shown(monkeypatch):
    """Each line that the page shows is one that the command prints."""
    monkeypatch.setattr("memplan.device.nvml.present", list)
    printed = CliRunner().invoke(cli, ["gpus"]).output.splitlines()
    shown = _example("gpus.md", "memplan gpus")

    assert len(shown) > 10
    assert [] == [line for line in shown if line not in printed]


def test_every_command_has_a_page():
    """The index names each command's page."""
    index = (ROOT / "docs/index.md").read_text()
    names = cli.list_commands(click.Context(cli))

    assert [] == [name for name in names if f"({name}.md)" not in index]


def test_every_page_is_reached_from_the_index():
    """No page stands where nobody finds it."""
    index = (ROOT / "docs/index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}

    assert set() == {name for name in pages if f"({name})" not in index}


def test_readme_is_one_page():
    """What a visitor reads first is short and fits a terminal."""
    lines = (ROOT / "README.md").read_text().splitlines()

    assert len(lines) <= 120


def test_examples_fit_a_terminal():
    """Code blocks are at most 80 columns wide, but for lines of a file's own."""
    wide = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in _blocks(page.read_text())
        if len(line) > 80
    ]

    assert [] == wide


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_options_in_the_tables_of_a_page_exist(name):
    """Each option that a command's page explains is one of that command."""
    command = cli.get_command(click.Context(cli), name)
    commands = [*command.commands.values()] if isinstance(command, click.Group) else [command]
    known = {
        option
        for one in commands
        for parameter in one.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    page = (ROOT / f"docs/{name}.md").read_text()
    cells = re.findall(r"^\| (`--.*?) \|", page, re.MULTILINE)
    named = {one for cell in cells for one in re.findall(r"`(--[a-z0-9-]+)", cell)}

    assert set() == named - known


def test_every_room_is_in_the_architecture():
    """A folder of memplan that the table leaves out is one that nobody finds."""
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "memplan").glob("*/__init__.py")}

    assert set() == {room for room in rooms if f"| `memplan/{room}/` |" not in page}


def test_every_command_and_function_is_on_the_page_of_python():
    """What a command answers, a function answers; the page names both."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    commands = set(cli.list_commands(click.Context(cli))) - {"data"}
    functions = {name for name in memplan.__all__ if name.islower() and name.isidentifier()}

    assert not [name for name in commands if f"[memplan {name}](" not in page]
    assert not [name for name in functions - {"__version__"} if f"`memplan.{name}`" not in page]
