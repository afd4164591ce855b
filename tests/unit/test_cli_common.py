"""What commands share: text as a terminal takes it, and commands one after another."""

import io
import os
import sys
import time

import pytest

from memplan.cli import exit_code
from memplan.cli.common import Progress, folded

SENTENCE = "Recommended: micro-batch 32 x accumulation 2 = 64 images a step, channels-last, lean."
ROW = f"{'64':>5}  {'22.68':>13}  {'23.29':>12}  {'23.67':>15}  tight  {'steady_step, forward':>21}"
POINT = f"  {SENTENCE}"
COPIED = f"Run it: memplan train --data {'d' * 70}.yaml --epochs 100"


class Terminal(io.StringIO):
    """A screen that somebody watches."""

    def isatty(self):
        """Return that it is a terminal."""
        return True


@pytest.fixture(name="shown")
def _shown(monkeypatch):
    """What a terminal of 60 columns gets of a text."""

    def show(text):
        with monkeypatch.context() as here:
            here.setattr(sys, "stdout", Terminal())
            here.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
            return folded(text)

    return show


def test_sentences_are_folded_at_words_on_a_terminal(shown):
    """No line is wider than the terminal, no word is cut or lost, and points stay points."""
    lines = shown(SENTENCE).splitlines()

    assert max(map(len, lines)) <= 60
    assert SENTENCE == " ".join(lines)
    assert ["  ", "    "] == [
        line[: len(line) - len(line.lstrip())] for line in shown(POINT).splitlines()
    ]


def test_rows_and_lines_to_copy_stay_whole(shown):
    """Columns stay below each other, and a command can be copied as it is."""
    assert f"{ROW}\n\n{COPIED}" == shown(f"{ROW}\n\n{COPIED}")


def test_text_into_a_pipe_stays_as_it_is():
    """What another program reads has no line ends of ours."""
    assert SENTENCE == folded(SENTENCE)


def test_commands_run_one_after_another(capsys):
    """A command's module (`memplan.cli.run`) takes no name that the command line needs."""
    codes = [exit_code(["run", "--help"]), exit_code(["gpus", "--help"])]

    assert [0, 0] == codes
    assert "memplan gpus" in capsys.readouterr().out


def test_an_argument_that_no_shell_passes_is_refused(capsys):
    """NUL, in a path or anywhere else."""
    codes = [exit_code(["plan", "--report", "a\0b"]), exit_code(["probe", "--cfg", "\0"])]

    assert [2, 2] == codes
    assert 2 == capsys.readouterr().err.count("holds the character NUL, which no name does.\n")


def test_progress_counts_on_while_one_thing_takes_long(monkeypatch):
    """Something that says nothing more is still seen to go on, and its line is cleared."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Progress, "REDRAW_SECONDS", 0.01)
    progress = Progress()

    progress("Reading snapshot.pickle")
    deadline = time.monotonic() + 30
    while screen.getvalue().count("Reading snapshot.pickle") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.done()
    drawn = screen.getvalue()
    assert drawn.count("Reading snapshot.pickle (0 s)") >= 3
    assert drawn.endswith("\r\x1b[K")


@pytest.mark.parametrize("reason", ["pipe", "dumb", "quiet"])
def test_progress_is_silent_where_nobody_watches(monkeypatch, reason):
    """Into a pipe, on a dumb terminal and with --quiet nothing is written."""
    screen = io.StringIO() if reason == "pipe" else Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb" if reason == "dumb" else "xterm")
    progress = Progress(quiet=reason == "quiet")

    progress("Reading")
    progress.done()
    assert "" == screen.getvalue()
