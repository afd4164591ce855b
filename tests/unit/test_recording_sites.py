"""Which files count as the user's."""

import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from memplan.recording.sites import is_installed, is_script, own_frame, script_line

PACKAGES = Path(torch.__file__).parents[1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (torch.__file__, False),
        (str(PACKAGES / "torchvision" / "ops" / "boxes.py"), False),
        (str(PACKAGES / "ultralytics" / "utils" / "loss.py"), True),
        (str(Path(sysconfig.get_paths()["stdlib"]) / "json" / "decoder.py"), False),
        ("<string>", False),
        ("/home/user/train.py", True),
        (__file__, True),
    ],
)
def test_what_is_neither_torch_nor_python_nor_memplan_is_the_users(path, expected):
    """Frameworks count, as their lines say where a value is read."""
    assert expected == is_script(path)


def test_a_line_is_named_by_file_and_number():
    """The caller's own line, wherever below it the question is asked."""
    assert script_line() == f"test_recording_sites.py:{sys._getframe().f_lineno}"


def test_the_users_own_file_goes_before_the_frameworks_it_calls(tmp_path):
    """Where memory runs out inside an installed package, the script's line is said."""
    package = tmp_path / "site-packages" / "framework.py"
    code = compile("def call(f):\n    return f()\n", str(package), "exec")
    scope = {}
    exec(code, scope)
    frames = scope["call"](lambda: scope["call"](lambda: None) or sys._getframe(1))

    assert is_installed(frames.f_code.co_filename)
    assert __file__ == own_frame(frames).f_code.co_filename
