"""The process of a watched command: its standard input, and that it never outlives memplan."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memplan.recording.script import without_variables

_RUN = (
    "import os, sys\n"
    "from memplan.recording.command_process import run_command\n"
    "command, asks = sys.argv[3:], sys.argv[2] == 'asks'\n"
    "sys.exit(run_command(command, dict(os.environ), folder=sys.argv[1], timeout_seconds=60,\n"
    "                     prints=True, asks=asks))\n"
)
_SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(50)"
_ASK = [sys.executable, "-c", "print('got', input())"]


def run(folder, asks, command, **options):
    return subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), asks, *command],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_a_script_that_asks_is_answered(tmp_path):
    """What the user types, or pipes, arrives."""
    done = run(tmp_path, "asks", _ASK, input="yes\n")

    assert (0, "got yes\n") == (done.returncode, done.stderr)


def test_a_script_has_no_input_where_none_is_given(tmp_path):
    """It meets the end of the file and does not wait."""
    assert "EOFError" in run(tmp_path, "none", _ASK, input="yes\n").stderr


def test_closed_streams_are_no_fault(tmp_path):
    """The script finds an empty input, and its output goes nowhere."""
    closed = 'exec "$@" <&- 2>&-; exit 9'
    done = subprocess.run(
        ["sh", "-c", closed, "sh", sys.executable, "-c", _RUN, str(tmp_path), "asks",
         sys.executable, "-c", "import sys; sys.exit(3 if sys.stdin.read() == '' else 4)"],
        timeout=60, check=False,
    )  # fmt: skip
    assert 3 == done.returncode


@pytest.mark.parametrize(
    ("command", "variables", "rest"),
    [
        ("python t.py --lr=1", {}, "python t.py --lr=1"),
        ("A=1 B= python t.py x=2", {"A": "1", "B": ""}, "python t.py x=2"),
        ("env A=1 python t.py", {"A": "1"}, "python t.py"),
        ("env python t.py", {}, "python t.py"),
        ("env -i python t.py", {}, "env -i python t.py"),
        ("A=1", {"A": "1"}, ""),
    ],
)
def test_variables_before_the_program_are_its_environment(command, variables, rest):
    """As a shell and `env` have them; `x=2` after the program is an argument."""
    assert (variables, tuple(rest.split())) == without_variables(command.split())


def _is_running(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_script_ends_where_memplan_is_killed(tmp_path):
    """SIGKILL leaves memplan no word to say; the guard ends the group and removes the folder."""
    folder = tmp_path / "watched"
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        "import os, time; print(os.getpid(), flush=True); time.sleep(50)",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder), "none", *command],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        script = int(running.stderr.readline())
        os.kill(running.pid, signal.SIGKILL)
    for _ in range(300):
        if not (_is_running(script) or folder.exists()):
            break
        time.sleep(0.1)

    assert not _is_running(script)
    assert not folder.exists()
