"""The command line inside the tests' own process: what it prints and its exit code."""

import json
import sys
from dataclasses import dataclass

from memplan.cli import main

# A small network on small images: recorded in a fraction of a second.
SMALL = ("--workload", "torchvision:resnet18", "--img", "64")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


def runner(monkeypatch, capsys):
    """Return a function that runs `memplan ARGUMENTS...` through the door that users take."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["memplan", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Finished(code, captured.out, captured.err)

    return run


def memory_values(value, name=""):
    """Yield the name and value of every field whose name ends in `_bytes`, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from memory_values(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from memory_values(item, name)
    elif name.endswith("_bytes"):
        yield name, value
