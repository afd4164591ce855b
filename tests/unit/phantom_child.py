"""Start a Python process on a phantom card and take its answer."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from memplan.device import catalogue
from memplan.phantom.launch import environment

ROOT = Path(__file__).parents[2]
SECONDS = 300
_PRELUDE = """\
import ctypes
import json
from memplan.phantom import control

cuda = ctypes.CDLL(None)


def call(name, *arguments):
    return getattr(cuda, name)(*arguments)


def allocate(size):
    pointer = ctypes.c_void_p()
    return call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size)), pointer


def answer(value):
    print(json.dumps(value), flush=True)


"""


def start(code, *, card="a100-80gb", variables=None, **options):
    """Run code in a child on that card; return the finished process.

    `call` asks the runtime, `allocate` is cudaMalloc, `answer` says what `ask` returns.
    """
    made = environment(catalogue.card(card), **options)
    made |= {"OMP_NUM_THREADS": "1", **(variables or {})}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PRELUDE + textwrap.dedent(code)],
        env=made,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        cwd=ROOT,
    )


def ask(code, **options):
    """Return the last thing that the code answers, having ended well."""
    done = start(code, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
