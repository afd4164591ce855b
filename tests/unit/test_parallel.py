"""Work in other processes: as a plain loop answers, bounded, and over when the caller is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver

import pytest

from memplan import parallel
from memplan.errors import BadInputError, ProcessError, UsageError
from memplan.parallel import kept_processes, map_processes
from memplan.processes import STOP_SIGNALS, is_worker, num_processes

SCRIPT = """
import sys

import torch

from memplan.parallel import map_processes


class Answer:
    def __init__(self, text):
        self.text = text


def convolved(width):
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width))
    return Answer(f"{width} {tuple(layer(torch.zeros(4, 3, 256, 256)).shape)}").text


print("begins")
torch.set_num_threads(4)
print(convolved(2))
print(*map_processes(convolved, [4, 8, 16], doing="convolving"), sep=", ")
"""


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch):
    """Use two processes also where there is one core."""
    monkeypatch.setenv("MEMPLAN_PROCESSES", "2")


def _square(number):
    return number * number, os.getpid(), is_worker()


def _fails(number):
    if number:
        raise BadInputError(f"number {number} cannot be used")
    time.sleep(0.2)


def _ends(number):
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _exits(number):
    os._exit(7 + 0 * number)


def _stalls(number):
    threading.Event().wait(600 + number)


class _AwkwardError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def _raises_what_cannot_travel(number):
    raise _AwkwardError(number, number)


def _nested(number):
    return [square for square, _, _ in map_processes(_square, [number, 2], doing="squaring")]


def _variable(_):
    return os.environ.get("MEMPLAN_TEST")


def _alive():
    return [one for one in multiprocessing.active_children() if isinstance(one, parallel._Worker)]


def test_answers_come_in_order_from_other_processes():
    """Items are worked on elsewhere, and nothing stays behind."""
    answers = map_processes(_square, range(6), doing="squaring")

    assert [0, 1, 4, 9, 16, 25] == [square for square, _, _ in answers]
    assert os.getpid() not in {process for _, process, _ in answers}
    assert all(worker for _, _, worker in answers)
    assert not is_worker()
    assert [] == _alive()


def test_processes_are_kept_for_a_stretch_of_work():
    """Within a stretch the same two processes work, and afterwards they are gone."""
    with kept_processes():
        calls = [map_processes(_square, range(8), doing="squaring") for _ in range(3)]

        assert 2 >= len({process for call in calls for _, process, _ in call})
        assert _alive()

    assert [] == _alive()


@pytest.mark.parametrize(("variable", "items"), [("1", [1, 2]), ("2", [3])])
def test_one_process_or_one_item_is_a_plain_loop(monkeypatch, variable, items):
    """No process is started where one is enough."""
    monkeypatch.setenv("MEMPLAN_PROCESSES", variable)

    assert {os.getpid()} == {
        process for _, process, _ in map_processes(_square, items, doing="squaring")
    }


def test_what_cannot_be_sent_is_a_plain_loop():
    """A function that holds a lock works, in this process."""
    lock = threading.Lock()

    def locked(number):
        with lock:
            return number, os.getpid()

    assert [(1, os.getpid()), (2, os.getpid())] == map_processes(locked, [1, 2], doing="locking")


def test_what_is_defined_in_a_function_can_be_sent():
    """A closure goes by value."""
    offset = 5

    assert [6, 7] == map_processes(lambda number: number + offset, [1, 2], doing="adding")


def test_a_process_within_a_process_is_a_plain_loop():
    """Workers start no workers."""
    assert [[1, 4], [9, 4]] == map_processes(_nested, [1, 3], doing="squaring")


def test_processes_have_the_environment_of_the_call(monkeypatch):
    """The server's own environment, which is older, plays no part."""
    map_processes(_variable, [1, 2], doing="reading")
    monkeypatch.setenv("MEMPLAN_TEST", "now")

    assert ["now", "now"] == map_processes(_variable, [1, 2], doing="reading")


def test_the_first_error_in_order_is_raised():
    """What a function raises is raised here, by the first item that failed."""
    with pytest.raises(BadInputError, match="number 1 cannot be used"):
        map_processes(_fails, [0, 1, 2], doing="failing")


def test_an_error_that_cannot_travel_is_told():
    """An exception of a constructor of its own comes as its text."""
    with pytest.raises(RuntimeError, match="_AwkwardError: 1 and 1"):
        map_processes(_raises_what_cannot_travel, [1, 2], doing="failing")


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (_ends, "it was ended by SIGKILL, as the system does when memory runs out"),
        (_exits, "it ended with exit code 7"),
    ],
)
def test_a_process_that_ends_is_told_in_one_line(function, how):
    """How it ended is said, with what it did and the way out; the others end too."""
    started = time.monotonic()
    with pytest.raises(ProcessError) as caught:
        map_processes(function, [0, 1], doing="recording steps")

    expected = f"A process was recording steps when {how}. Set MEMPLAN_PROCESSES=1 to use one"
    assert f"{expected} process." == str(caught.value)
    assert 30 > time.monotonic() - started
    assert [] == _alive()


def test_processes_that_stall_are_ended(monkeypatch):
    """After the bound the command ends with one line, and so do they."""
    map_processes(_square, [1, 2], doing="squaring")  # the server is up
    monkeypatch.setenv("MEMPLAN_PROCESS_SECONDS", "2")
    with pytest.raises(ProcessError, match="No process replaying has answered for 2 s") as caught:
        map_processes(_stalls, [0, 1], doing="replaying")

    assert "MEMPLAN_PROCESSES=1" in str(caught.value)
    assert [] == _alive()


def _hangs_when_it_ends(number):
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    return number


def test_a_process_that_does_not_end_by_itself_is_killed(monkeypatch):
    """What a library waits for at the end of a process keeps no command waiting."""
    monkeypatch.setattr(parallel, "_ENDING_SECONDS", 1)
    started = time.monotonic()

    assert [1, 2] == map_processes(_hangs_when_it_ends, [1, 2], doing="hanging")
    assert 30 > time.monotonic() - started
    assert [] == _alive()


def test_a_worker_of_a_pool_may_start_no_process():
    """Python allows it none, which is said in one line."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        told = pool.apply(_started_by_a_worker)

    assert "Give --workers 0" in told


def _started_by_a_worker():
    with pytest.raises(ProcessError) as refused:
        parallel.CleanProcess(target=os._exit, args=(0,)).start()
    return str(refused.value)


def test_two_threads_may_ask_how_a_process_ended():
    """Both are told the exit code, which the server tells only once."""
    assert {7} == {code for _ in range(5) for code in _codes_seen_by_threads(8)}


def _codes_seen_by_threads(num_threads):
    """Return the exit code of one process as several threads see it at the same time."""
    process = parallel.CleanProcess(target=os._exit, args=(7,))
    process.start()

    def waited(_):
        while (code := process._popen.poll()) is None:
            time.sleep(0)
        return code

    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(waited, range(num_threads)))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_ends_every_process_of_a_command_does_not_end_the_server(number):
    """Without it the others are taken for dead, as a loader's were when a cluster said to stop."""
    map_processes(_square, [1, 2], doing="squaring")  # the server is up
    server = forkserver._forkserver._forkserver_pid
    process = parallel.CleanProcess(target=time.sleep, args=(60,))
    process.start()

    os.kill(server, number)
    time.sleep(0.2)
    assert process.is_alive()
    assert [4, 9] == [each for each, *_ in map_processes(_square, [2, 3], doing="squaring")]
    assert server == forkserver._forkserver._forkserver_pid

    process.terminate()
    process.join(20)
    assert -signal.SIGTERM == process.exitcode


def test_work_goes_on_after_a_process_has_ended():
    """The stretch of work gets new processes."""
    with kept_processes():
        with pytest.raises(ProcessError):
            map_processes(_exits, [1, 2], doing="exiting")

        assert [1, 4] == [
            square for square, _, _ in map_processes(_square, [1, 2], doing="squaring")
        ]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, text):
    """The variable is told with its value."""
    monkeypatch.setenv("MEMPLAN_PROCESSES", text)
    with pytest.raises(UsageError, match=f"MEMPLAN_PROCESSES={text} is no number of processes"):
        num_processes()


def _run(tmp_path, text, *, threads="4"):
    """Run a script that memplan's processes must not run again; bounded."""
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    command = [sys.executable, str(script)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )


def test_a_script_that_has_computed_gets_answers(tmp_path):
    """Threads of this process's tensor code harm no other; its top level runs once."""
    done = _run(tmp_path, SCRIPT)

    assert "" == done.stderr
    assert (
        "begins\n2 (4, 2, 254, 254)\n4 (4, 4, 254, 254), 8 (4, 8, 254, 254), 16 (4, 16, 254, 254)\n"
    ) == done.stdout


def _children_of(process):
    """Return the processes of a session, which are those a command has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(process)], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid) for pid, state in rows if not state.startswith("Z")} - {process}


def _gone(session, seconds=30):
    """Return whether all of a session end within a time."""
    end = time.monotonic() + seconds
    while _children_of(session) and time.monotonic() < end:
        time.sleep(0.1)
    return not _children_of(session)


WAITING = """
import sys, time
from memplan.cli import cli, main
from memplan.parallel import map_processes
import click

def waits(number):
    print("waits", flush=True)
    time.sleep(300 + number)

@cli.command("wait")
def wait():
    map_processes(waits, [0, 1], doing="waiting")

sys.argv = ["memplan", "wait"]
cli.get_command = lambda context, name: wait
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_process(tmp_path, number):
    """Ctrl-C says so in a line; whatever ends the command, its processes end too."""
    script = tmp_path / "script.py"
    script.write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert ["waits\n", "waits\n"] == [process.stdout.readline() for _ in range(2)]
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(60)

        assert _gone(process.pid)
        expected = (130, "\nInterrupted.\n") if number == signal.SIGINT else (-number, "")
        assert expected == (process.returncode, process.stderr.read())
