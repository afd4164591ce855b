"""The wheel holds everything that the command needs, and runs away from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import memplan
from memplan.phantom.compile import LIBRARIES, NESTED, SONAMES

ROOT = Path(__file__).parents[2]


def _run(*command, cwd):
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )


def _source(destination):
    """Copy what goes into a wheel, so that building leaves nothing in the checkout."""
    names = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    listed = [ROOT / name for name in names]
    for folder in ("memplan", "models"):
        listed += [p for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts]
    for path in listed:
        if path.is_file():
            target = destination / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return destination


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory):
    """Return the wheel, built from the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    source = _source(tmp_path_factory.mktemp("source"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    built = _run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(name="environment", scope="module")
def _environment(wheel, tmp_path_factory):
    """Return a new environment with the wheel in it, and its dependencies borrowed from here."""
    folder = tmp_path_factory.mktemp("environment")
    made = _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    assert made.returncode == 0, made.stderr
    purelib = Path(
        sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    )
    options = ("--no-deps", "--no-index", "--quiet", "--prefix", folder, "--ignore-installed")
    installed = _run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    # A plain path: .pth files in the borrowed folder, the editable install's among them, stay off.
    (purelib / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def _python(environment, code, tmp_path):
    done = _run(environment / "bin" / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_data_files(wheel):
    """Cards, configurations, hyperparameters and the type marker travel with the code."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT)).replace("models/", "memplan_models/", 1)
        for path in (*ROOT.glob("memplan/**/*.yaml"), *ROOT.glob("models/**/*.yaml"))
    }

    assert expected | {"memplan/py.typed"} <= names
    assert any(name.startswith("memplan_models/yolov9/cfg/") for name in expected)
    assert any(name.startswith("memplan_models/yolo_data/hyp/") for name in expected)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    """Code is complete; tests and scripts stay at home."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    expected = {
        str(path.relative_to(ROOT)).replace("models/", "memplan_models/", 1)
        for folder in ("memplan", "models")
        for path in (ROOT / folder).rglob("*.py")
    }

    assert expected == names


def test_the_wheel_holds_the_phantoms_libraries_for_both_cuda_majors(wheel):
    """A wheel is for Linux on this kind of machine, and any Python."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(
            Path(f"memplan/phantom/lib/cuda{major}") / NESTED / library.folder / library.file(major)
        )
        for major in SONAMES
        for library in LIBRARIES
    }

    assert expected <= names
    assert "-py3-none-linux_" in wheel.name


def test_the_installed_phantom_runs_with_no_compiler(environment, tmp_path):
    """The wheel's own libraries carry a process; nothing is compiled and no cache is made."""
    (tmp_path / "child.py").write_text(
        "import torch\n"
        "from memplan.phantom import control\n"
        "images = torch.ones(2, 3, 64, 64, device='cuda')\n"
        "torch.nn.Conv2d(3, 8, 3).cuda()(images).sum().backward()\n"
        "print(torch.cuda.get_device_name(), control.used_bytes(), control.missing_calls())\n"
    )
    code = (
        "import subprocess, sys\n"
        "from memplan.device.catalogue import card\n"
        "from memplan.phantom.build import library_folder\n"
        "from memplan.phantom.launch import environment\n"
        "print(library_folder(), flush=True)\n"
        "child = [sys.executable, 'child.py']\n"
        "variables = environment(card('rtx-3090'))\n"
        "subprocess.run(child, env=variables, check=True, timeout=300)\n"
    )
    variables = {"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )

    folder, answer = done.stdout.splitlines()
    assert 0 == done.returncode, done.stderr
    assert folder.startswith(str(environment))
    assert answer.startswith("NVIDIA GeForce RTX 3090 ")
    assert answer.endswith(" []")
    assert not (tmp_path / ".cache").exists()


def test_the_installed_package_is_the_wheels(environment, tmp_path):
    """Nothing of the checkout is imported in the new environment."""
    code = "import memplan, memplan_models; print(memplan.__file__); print(memplan_models.__file__)"

    for line in _python(environment, code, tmp_path).splitlines():
        assert line.startswith(str(environment))


def test_the_command_tells_its_version(environment, tmp_path):
    """`memplan --version` answers from any folder."""
    done = _run(environment / "bin" / "memplan", "--version", cwd=tmp_path)

    assert (0, f"memplan {memplan.__version__}\n", "") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_the_command_lists_the_cards(environment, tmp_path):
    """`memplan gpus` reads the catalogue out of the package."""
    done = _run(environment / "bin" / "memplan", "gpus", cwd=tmp_path)

    assert 0 == done.returncode, done.stderr
    assert "rtx-3090" in done.stdout


def test_the_workloads_are_found_through_entry_points(environment, tmp_path):
    """The tool finds the models that ship beside it by name."""
    code = (
        "from importlib.metadata import entry_points\n"
        "print(*sorted(e.value for e in entry_points(group='memplan.workloads')))"
    )
    families = ("official", "torchvision", "yolov9.workload")
    expected = " ".join(f"memplan_models.{family}:FAMILY" for family in families)

    # Borrowing brings the checkout's own metadata along, so the set is compared.
    assert set(expected.split()) == set(_python(environment, code, tmp_path).split())
