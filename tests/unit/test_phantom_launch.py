"""The environment that puts a child process on a phantom card, and who is refused one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.device import catalogue
from memplan.errors import BadInputError
from memplan.phantom.build import library_folder
from memplan.phantom.compile import LIBRARIES, NESTED, compile_libraries
from memplan.phantom.installed import cuda_major
from memplan.phantom.launch import environment

CARD = catalogue.card("t4")


def test_the_runtime_is_preloaded_first_and_others_stay():
    """What was preloaded before comes after, once, and the rest of the environment is kept."""
    base = {"LD_PRELOAD": "/lib/other.so", "HOME": "/somewhere", "CUDA_VISIBLE_DEVICES": "3"}

    made = environment(CARD, base=base)
    again = environment(CARD, base=made)

    first, *_, last = made["LD_PRELOAD"].split(":")
    assert str(library_folder()) in first
    assert "/lib/other.so" == last
    assert made == again
    assert "/somewhere" == made["HOME"]
    assert "CUDA_VISIBLE_DEVICES" not in made
    assert "0" == made["USE_PYTORCH_KERNEL_CACHE"]


def test_a_folder_with_a_space_in_its_name_serves(tmp_path):
    """LD_PRELOAD cannot quote; the child runs on the phantom all the same."""
    cache = tmp_path / "my cache"
    code = (
        "import subprocess, sys\n"
        "from memplan.device import catalogue\n"
        "from memplan.phantom.launch import environment\n"
        "child = 'from memplan.phantom import control; print(control.used_bytes())'\n"
        "variables = environment(catalogue.card('t4'))\n"
        "subprocess.run([sys.executable, '-c', child], env=variables, check=True, timeout=60)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert ("0\n", "") == (done.stdout, done.stderr)
    assert cache.is_dir()


def test_a_folder_with_a_colon_in_its_name_is_refused(tmp_path):
    """The loader would take it for the end of the name."""
    line = _refusal(XDG_CACHE_HOME=str(tmp_path / "a:b"))

    assert "the loader takes the colon for an end" in line


def test_this_process_stays_off_the_phantom():
    """Only what is started with the environment meets the phantom."""
    from memplan.phantom import control

    before = dict(os.environ)
    environment(CARD)

    assert before == dict(os.environ)
    assert not control.is_loaded()
    with pytest.raises(BadInputError, match=r"memplan\.phantom\.launch"):
        control.used_bytes()


def test_another_system_than_linux_is_refused(monkeypatch):
    """The libraries are for Linux."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(BadInputError, match="needs Linux, and this machine runs darwin"):
        environment(CARD)


_CHILD = """\
from memplan.device import catalogue
from memplan.errors import MemplanError
from memplan.phantom.launch import environment
try:
    environment(catalogue.card("t4"))
except MemplanError as error:
    print(error)
"""


def _refusal(**variables):
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("None", "The torch installed was built without CUDA"),
        ("'11.8'", "built with CUDA 11; the phantom card has runtimes for CUDA 12 and 13."),
    ],
)
def test_a_torch_that_cannot_be_served_is_refused(tmp_path, cuda, expected):
    """A build without CUDA, or with one that no runtime is there for."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text(f"cuda: Optional[str] = {cuda}\n")

    assert expected in _refusal(PYTHONPATH=str(tmp_path))


def test_another_interpreter_is_asked_for_its_own_torch(tmp_path):
    """A CUDA 12 torch gets the runtime of CUDA 12, though this Python has another."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)

    first = environment(CARD, interpreter=str(python))["LD_PRELOAD"].split(":")[0]

    assert first.endswith("/libcudart.so.12")
    assert "/cuda12/" in first


def test_a_program_that_is_no_python_is_named():
    """One line, and no traceback of the other program."""
    with pytest.raises(BadInputError, match="/bin/false cannot be asked for its torch"):
        environment(CARD, interpreter="/bin/false")


def test_a_cudnn_that_takes_no_card_in_words_is_refused(tmp_path):
    """Before 9.8 cuDNN plans for a present device only."""
    distribution = tmp_path / "nvidia_cudnn_cu13-9.1.0.70.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nvidia-cudnn-cu13\nVersion: 9.1.0.70\n"
    )

    assert "cuDNN 9.1.0.70 cannot plan" in _refusal(PYTHONPATH=str(tmp_path))


def test_without_a_compiler_the_way_out_is_said(tmp_path):
    """A checkout that was never compiled, and no gcc."""
    line = _refusal(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))

    assert "there is no gcc. Install gcc (apt-get install gcc), or memplan from a wheel" in line


def test_a_compiler_that_refuses_is_quoted(tmp_path):
    """The first line of what it said."""
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho 'x.c:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)

    line = _refusal(PATH=f"{tmp_path}:/usr/bin:/bin", XDG_CACHE_HOME=str(tmp_path))

    assert "gcc refused libcudart.so" in line
    assert "error: no such thing" in line


def test_a_cache_that_cannot_be_made_is_said(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "memplan").write_text("")

    assert "Set XDG_CACHE_HOME" in _refusal(XDG_CACHE_HOME=str(tmp_path))


def test_processes_that_compile_at_once_agree(tmp_path):
    """Each finds whole libraries, and one copy stays."""
    code = "from memplan.phantom.build import library_folder; print(library_folder())"
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    folders = {child.communicate(timeout=300)[0].strip() for child in children}

    (folder,) = folders
    (kept,) = (tmp_path / "memplan").iterdir()
    (major,) = kept.iterdir()
    assert Path(folder) == major / NESTED


def test_libraries_are_the_same_wherever_they_are_compiled(tmp_path):
    """What cuDNN answered is kept under a hash of their bytes."""
    for name in ("one", "another"):
        compile_libraries(tmp_path / name, cuda_major())
    one, another = (sorted((tmp_path / name).rglob("*.so*")) for name in ("one", "another"))

    assert len(LIBRARIES) < len(one)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in another]
