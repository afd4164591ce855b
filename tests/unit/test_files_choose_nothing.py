"""No file chooses code to run, or a folder to write into: only the command line does."""

import io
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from report_samples import sample_plan
from train_toy import Toy, toy_options

from memplan.answers import save_answers
from memplan.cli import cli
from memplan.errors import BadInputError, UsageError
from memplan.registry import SavedName, make_workload, runs_code
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint, save_checkpoint

EVIL = "from pathlib import Path\nPath('ran').touch()\n"
# Names that files have been seen to hold, and their like; each would run code if it were typed.
CODE = [
    "evil_mod:factory",
    "evil_package.inner:factory",
    "official:.",
    "official:evil_checkout",
    "memplan.cli:main",
    "os:getcwd",
    ":factory",
    "evil_mod:",
    "torchvision:../evil_mod",
    "torchvision:evil_mod:factory",
    "yolov9:evil_mod",
    "unknown:resnet50",
    "evil_mod:factory.yaml",
]
ODD = [None, 3, "", ["evil_mod:factory"], b"evil_mod:factory", {"evil_mod": 1}, "x" * 5000]


@pytest.fixture(autouse=True)
def _trap(tmp_path, monkeypatch):
    """A working directory full of modules and a checkout that leave a mark when they run."""
    for name in ("evil_mod.py", "models/yolo.py", "models/common.py", "models/__init__.py",
                 "utils/general.py", "utils/torch_utils.py", "utils/__init__.py",
                 "evil_package/__init__.py", "evil_package/inner.py"):  # fmt: skip
        for root in (tmp_path, tmp_path / "evil_checkout"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield
    assert not (tmp_path / "ran").exists(), "code ran"


def _run(*words):
    """Return the error of a command that ends with one, which is a line."""
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    error = result.exception
    assert isinstance(error, BadInputError), error
    assert "\n" not in str(error)
    return str(error)


def _checkpoint(tmp_path, **options):
    """Write the checkpoint of a stopped run whose options say what a stranger wants."""
    (tmp_path / "made").mkdir(exist_ok=True)
    folder = train(Toy(), toy_options(tmp_path / "made", exist_ok=True)).run_folder
    path = folder / "weights/last.pt"
    saved = load_checkpoint(path)
    changed = {**vars(saved), "finished": False, "options": {**saved.options, **options}}
    save_checkpoint(path, type(saved)(**changed))
    return path


@pytest.mark.parametrize("name", CODE)
def test_a_name_in_a_file_runs_no_code(name):
    """The registry refuses it before anything is imported, and says what to type."""
    with pytest.raises(BadInputError, match=r"evil\.pt was made with --workload"):
        make_workload(SavedName(name, "evil.pt"))


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_name_is_refused(name):
    """Values of other types, or of thousands of characters, are no names."""
    with pytest.raises(BadInputError, match="does not say by a name"):
        SavedName(name, "evil.pt")


@pytest.mark.parametrize("name", ["yolov9-t", "torchvision:resnet18"])
def test_a_registered_name_in_a_file_is_taken(name):
    """Families that run nothing of the user's may be named by files."""
    assert name == make_workload(SavedName(name, "plan.json")).name
    assert not runs_code(name)


@pytest.mark.parametrize("name", CODE)
def test_a_checkpoint_cannot_choose_code_for_resume(tmp_path, name):
    """`train --resume` with a stranger's last.pt ends in one line."""
    path = _checkpoint(tmp_path, cfg=name)

    assert "type it: --workload" in _run("train", "--resume", path)


def test_a_checkpoint_cannot_choose_blocks_for_resume(tmp_path):
    """The module of a run's own blocks is imported only where it is typed again."""
    path = _checkpoint(tmp_path, cfg="yolov9-t", blocks="evil_mod")

    assert "If you trust that code, type it: --blocks evil_mod." in _run("train", "--resume", path)


def test_a_checkpoint_cannot_choose_blocks_as_weights(tmp_path):
    """Weights whose architecture needs blocks name the option, and import nothing."""
    rows = "backbone: [[-1, 1, Evil, []]]\nhead: [[[-1], 1, DDetect, [nc]]]\n"
    (tmp_path / "evil.yaml").write_text(f"nc: 1\n{rows}")
    path = _checkpoint(tmp_path, cfg="evil.yaml", blocks="evil_mod")

    said = _run("export", "--weights", path, "--output", tmp_path / "x.onnx")

    assert "Module 'Evil' in the model description is not known" in said
    assert "--blocks package.module" in said


@pytest.mark.parametrize("name", ["evil_mod:factory", "official:evil_checkout"])
def test_a_checkpoint_cannot_choose_code_as_weights(tmp_path, name):
    """`train --weights x.pt` without --cfg ends in one line."""
    path = _checkpoint(tmp_path, cfg=name)

    said = _run("train", "--weights", path, "--data", tmp_path / "made/data.yaml")

    assert "so a file cannot choose it" in said


def _named(name):
    """Return a plan of a workload so named; the sample is shared with other tests."""
    plan = sample_plan()
    return replace(plan, workload=replace(plan.workload, name=name))


@pytest.mark.parametrize("name", ["evil_mod:factory", "official:evil_checkout"])
def test_a_plan_cannot_choose_code(tmp_path, name):
    """`train --plan` takes settings from a plan, and registered names only."""
    plan = _named(name)
    save_answers(tmp_path / "plan.json", [plan], force=True)

    said = _run("train", "--plan", "plan.json", "--data", tmp_path / "made/data.yaml")

    assert "plan.json was made with --workload" in said


@pytest.mark.parametrize(
    "command", [["check", "--budget", "1GiB"], ["report", "--output", "x.pdf"]]
)
def test_a_saved_answer_is_only_read(tmp_path, command):
    """Checks and pages of a file that names code run none of it."""
    plan = _named("evil_mod:factory")
    save_answers(tmp_path / "plan.json", [plan], force=True)
    name, *rest = command

    CliRunner().invoke(cli, [name, "plan.json", *rest], standalone_mode=False)


OWN = """
import sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
from train_toy import Toy
def make(**arguments):
    return Toy()
"""


def test_a_workload_of_ones_own_is_typed_again_to_resume(tmp_path):
    """The line that stops the run says so, and what it says works."""
    (tmp_path / "mine.py").write_text(OWN.format(tests=str(Path(__file__).parent)))
    path = _checkpoint(tmp_path, cfg="mine:make", epochs=3)

    assert "--workload mine:make" in _run("train", "--resume", path)
    words = ["train", "--resume", str(path), "--workload", "mine:make", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*words, "--noplots"], standalone_mode=False)

    assert result.exception is None, result.exception
    assert load_checkpoint(path).finished


def test_another_workload_than_the_runs_is_refused(tmp_path):
    """A typed name does not silently replace a registered one."""
    path = _checkpoint(tmp_path, cfg="yolov9-t")

    assert "is of a run of 'yolov9-t'" in _run("train", "--resume", path, "--workload", "a.b:c")


def test_a_checkpoint_does_not_choose_the_folder(tmp_path):
    """A file's project, name and exist_ok never lead to another run's records."""
    other = tmp_path / "other/exp"
    other.mkdir(parents=True)
    (other / "results.csv").write_text("precious")
    path = _checkpoint(
        tmp_path, project=str(other.parent), name="exp", exist_ok=True, epochs=3, cfg="toy"
    )

    train(Toy(), TrainOptions(data=path, resume=path, device="cpu"))

    assert "precious" == (other / "results.csv").read_text()
    assert (path.parents[1] / "results.csv").exists()
    saved = load_checkpoint(path).options
    assert (str(path.parents[2]), path.parents[1].name) == (saved["project"], saved["name"])
    assert not saved["exist_ok"]


def test_a_checkpoint_outside_a_run_folder_needs_a_folder_typed(tmp_path):
    """Where to write is asked for, in one line, and then followed."""
    path = _checkpoint(tmp_path, project=str(tmp_path / "theirs"), cfg="mine:make", epochs=3)
    lone = tmp_path / "downloads/last.pt"
    lone.parent.mkdir()
    path.rename(lone)
    (tmp_path / "mine.py").write_text(OWN.format(tests=str(Path(__file__).parent)))
    words = ["train", "--resume", lone, "--workload", "mine:make", "--device", "cpu", "--noplots"]

    assert "Give --name" in _run(*words)
    typed = [*map(str, words), "--project", str(tmp_path / "ours"), "--name", "new"]
    result = CliRunner().invoke(cli, typed, standalone_mode=False)

    assert result.exception is None, result.exception
    assert (tmp_path / "ours/new/weights/last.pt").exists()
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "/x", "", "a\0b", "x" * 300])
def test_a_name_that_leaves_the_project_is_refused(tmp_path, name):
    """--name names a folder in --project and nothing else."""
    with pytest.raises(UsageError, match="--name"):
        toy_options(tmp_path, name=name)


@pytest.mark.parametrize(
    "name",
    ["memory.csv", "events.jsonl", "results.csv", "per_class.csv", "weights/best.pt", "plots"],
)
@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_run_folder_with_links_or_pipes_in_it_is_not_written_into(tmp_path, name, is_pipe):
    """A stranger's folder may hold links to the user's files; resuming in it is refused."""
    path = _checkpoint(tmp_path, epochs=3)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    laid = path.parents[1] / name
    laid.unlink(missing_ok=True)
    os.mkfifo(laid) if is_pipe else laid.symlink_to(precious)

    with pytest.raises(BadInputError, match="which a run does not make"):
        train(Toy(), TrainOptions(data=path, resume=path, device="cpu"))

    assert "mine" == precious.read_text()


def test_a_link_under_the_name_of_a_file_on_its_way_is_not_followed(tmp_path):
    """What older versions wrote through, and what a guess may hit, leads nowhere."""
    path = _checkpoint(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in (".last.pt.partial", ".last.pt.0.partial"):
        (path.parent / name).symlink_to(precious)

    save_checkpoint(path, load_checkpoint(path))

    assert "mine" == precious.read_text()
    assert not path.is_symlink()


def test_a_checkpoint_is_written_through_a_name_nobody_can_foresee(tmp_path, monkeypatch):
    """The file on its way is new, ours alone to make, and under another name each time."""
    path = _checkpoint(tmp_path)
    names = []
    save = torch.save

    def noted(content, file, **more):
        names.extend(file.name for file in path.parent.iterdir() if file.name.startswith("."))
        save(content, file, **more)

    monkeypatch.setattr(torch, "save", noted)
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint)
    save_checkpoint(path, checkpoint)

    assert 2 == len(set(names))
    expected = ["best.pt", "last.pt", "previous.pt"]
    assert expected == sorted(file.name for file in path.parent.iterdir())


def test_the_line_that_says_how_to_go_on_can_be_pasted(tmp_path):
    """Folders with blanks are quoted, and own workloads named."""

    def stop(name, _facts):
        if name == "saved":
            raise KeyboardInterrupt

    stream = io.StringIO()
    options = toy_options(tmp_path, name="a b", cfg="mine:make")
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), options, on_event=stop, stream=stream)
    stream.seek(0)
    line = next(line for line in stream if "Continue with: " in line)

    expected = [
        "memplan",
        "train",
        "--resume",
        str(tmp_path / "runs/a b"),
        "--workload",
        "mine:make",
    ]
    assert expected == shlex.split(line.partition("Continue with: ")[2])
