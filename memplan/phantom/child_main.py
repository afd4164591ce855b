"""The child's side of `memplan.phantom.child`: a loop that forks a copy for every call.

Requests come as lines of JSON on standard input, answers go as lines to what was standard output;
what the calls print goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from memplan.errors import MemplanError


def main(imports: list[str]) -> None:
    """Import modules, then answer requests until an empty line or standard input's end."""
    # The parent may hold itself to a part of the memory; libraries that cannot be loaded within it
    # would be left out without a word, and answers with them.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in imports:
        importlib.import_module(name)
    # What is imported lives as long as the process: neither it nor its copies need look at it.
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        if not line.strip():
            break
        request = json.loads(line)
        answer = {"number": request["number"], **_in_a_copy(request)}
        print(json.dumps(answer), file=answers, flush=True)


def _in_a_copy(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a forked copy of this process answers to a request."""
    reading, writing = os.pipe()
    copy = os.fork()
    if copy == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as answer:
            answer.write(json.dumps(_answered(request)))
        sys.stdout.flush()
        sys.stderr.flush()
        # Without the exit handlers of what the parent imported: they are the parent's.
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(copy, 0)
    return json.loads(text) if text else {"died": os.waitstatus_to_exitcode(status)}


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    module, name = request["function"]
    try:
        function = getattr(importlib.import_module(module), name)
        more = {} if request["out"] is None else {"out": Path(request["out"])}
        return {"result": function(**request["arguments"], **more)}
    except MemplanError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever PyTorch raises is the answer
        traceback.print_exc()
        return {"error": "MemplanError", "message": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(sys.argv[1:])
