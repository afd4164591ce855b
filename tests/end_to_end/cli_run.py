"""`memplan run` as users start it, and the scripts that it is given."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "run_scripts"
TRAIN = [sys.executable, str(SCRIPTS / "train.py"), "--batch"]


def memplan_run(*arguments, command, timeout=300):
    return subprocess.run(
        [sys.executable, "-m", "memplan", "run", *arguments, "--", *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def answer_of(*arguments, command):
    done = memplan_run("--json", *arguments, command=command)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def script(folder, text):
    path = folder / "script.py"
    path.write_text(text)
    return [sys.executable, str(path)]
