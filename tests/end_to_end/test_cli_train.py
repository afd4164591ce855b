"""`memplan train` as a user types it: a run, a plan for host memory, resume, and bad input."""

import json
import os
import pickle
import re
import signal
import time

import pandas as pd
import pypdf
import pytest
import torch
import yaml
from cli_set import memplan, memplan_started, write_set

QUICK = ("--device", "cpu", "--workers", "0", "--img", "64", "--epochs", "1")
PICTURES = ("confusion_matrix", "f1", "precision", "precision_recall", "recall")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """Return a folder with a tiny set in it; commands run here."""
    folder = tmp_path_factory.mktemp("train")
    write_set(folder / "set")
    return folder


@pytest.fixture(name="planned", scope="module")
def _planned(folder):
    """Return a finished run of --auto-batch."""
    arguments = ("--auto-batch", "--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK)
    return memplan("train", *arguments, "--effective-batch", "4", "--name", "planned", cwd=folder)


def test_a_planned_run_says_what_came_of_it(planned):
    """Standard output is the results, numbers aside."""
    expected = (
        "Trained # epoch in # s; # images/s (measured)\n"
        "Best epoch #: precision #, recall #, mAP# #, mAP#-# # (measured)\n"
        "Validation by class (measured); precision and recall at confidence #\n"
        "Class  Images  Instances  Precision  Recall  mAP#  mAP#-#\n"
        "all         #          #      #   #  #     #\n"
        "a           #          #      #   #  #     #\n"
        "b           #          #      #   #  #     #\n"
        "Weights runs/train/planned/weights/best.pt and runs/train/planned/weights/last.pt\n"
    )

    assert 0 == planned.returncode, planned.stderr
    assert expected == _NUMBER.sub("#", planned.stdout).replace("# ms", "# s")


def test_a_run_without_a_card_is_planned_for_host_memory(planned, folder):
    """The plan has the effective batch asked for, in fp32, and says that it is for host memory."""
    plan = json.loads((folder / "runs/train/planned/plan.json").read_text())

    assert "memplan.plan/1" == plan["schema"]
    assert ("cpu", "host memory") == (plan["gpu"]["name"], plan["gpu"]["source"])
    assert (4, 1, "fp32") == (
        plan["micro_batch_size"],
        plan["accumulation_steps"],
        plan["precision"],
    )
    assert "The plan is for host memory:" in planned.stderr


def test_progress_away_from_a_terminal_is_plain_lines(planned):
    """No escape codes and no carriage returns; one line an epoch."""
    assert "\x1b" not in planned.stderr
    assert "\r" not in planned.stderr
    assert 1 == planned.stderr.count("\nepoch 1/1: box_loss ")


def test_a_run_leaves_its_records(planned, folder):
    """Every file of the run folder is there, the report has pages, the pictures are pictures."""
    run = folder / "runs/train/planned"
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}

    assert {
        "args.yaml",
        "events.jsonl",
        "hyp.yaml",
        "memory.csv",
        "per_class.csv",
        "plan.json",
        *(f"plots/{name}.{kind}" for name in PICTURES for kind in ("csv", "png")),
        "plots/labels.png",
        "plots/memory.png",
        "plots/results.png",
        "plots/train_batch_1.png",
        "plots/train_batch_2.png",
        "plots/validation_batch.png",
        "report.html",
        "report.pdf",
        "results.csv",
        "weights/best.pt",
        "weights/last.pt",
    } == files
    assert 3 <= len(pypdf.PdfReader(run / "report.pdf").pages)
    assert b"\x89PNG" == (run / "plots/results.png").read_bytes()[:4]
    assert [1] == pd.read_csv(run / "results.csv")["epoch"].tolist()
    assert "Wrote runs/train/planned/report.pdf\n" in planned.stderr


def test_a_saved_plan_is_followed(planned, folder):
    """--plan brings model, image size and batch; only the data is still needed."""
    assert 0 == planned.returncode
    arguments = ("--plan", "runs/train/planned/plan.json", "--data", "set/data.yaml", "--noplots")
    finished = memplan("train", *arguments, *QUICK[:4], "--epochs", "1", "--name", "saved",
                       cwd=folder)  # fmt: skip
    record = yaml.safe_load((folder / "runs/train/saved/args.yaml").read_text())

    assert 0 == finished.returncode, finished.stderr
    assert ("yolov9-t", 64, 4, 1) == (
        record["cfg"],
        record["image_size"],
        record["batch"],
        record["accumulate"],
    )
    assert not (folder / "runs/train/saved/report.pdf").exists()


def test_what_a_data_set_recommends_is_taken_and_said(tmp_path):
    """train_defaults hold where the command line is silent, and are printed as options."""
    defaults = {"hyp": "small-set.yaml", "optimizer": "AdamW", "effective_batch": 2}
    write_set(tmp_path / "set", train_defaults=defaults)
    arguments = ("--cfg", "models/detect/yolov9-t.yaml", "--data", "set/data.yaml", *QUICK)
    finished = memplan("train", *arguments, "--noplots", cwd=tmp_path)
    record = yaml.safe_load((tmp_path / "runs/train/exp/args.yaml").read_text())

    assert 0 == finished.returncode, finished.stderr
    assert (
        "From set/data.yaml (train_defaults): --hyp small-set.yaml, --optimizer AdamW, "
        "--effective-batch 2\n"
        "--batch 2: no more at once than a step asks for.\n"
    ) in finished.stderr
    assert ("AdamW", 2, 2, "small-set.yaml") == (
        record["optimizer"],
        record["batch"],
        record["effective_batch"],
        record["hyp"],
    )


def _table(output):
    """Return the rows by class."""
    return [line for line in output.splitlines() if line.startswith(("Class", "all ", "a ", "b "))]


def test_a_checkpoint_says_what_it_is(planned, folder):
    """Evaluating one's own weights needs neither --cfg nor --img, and finds what the run found."""
    assert 0 == planned.returncode
    weights = "runs/train/planned/weights/best.pt"
    arguments = ("--weights", weights, "--data", "set/data.yaml", "--device", "cpu", "--noplots")
    finished = memplan("train", "--epochs", "0", *arguments, "--name", "evaluated", cwd=folder)

    assert 0 == finished.returncode, finished.stderr
    assert _table(planned.stdout) == _table(finished.stdout) != []


def test_weights_that_do_not_say_need_a_cfg(folder):
    """A file of weights alone is not guessed at."""
    torch.save({"a": torch.zeros(1)}, folder / "bare.pt")
    arguments = ("--weights", "bare.pt", "--data", "set/data.yaml", "--device", "cpu")
    finished = memplan("train", "--epochs", "0", *arguments, cwd=folder)

    assert 2 == finished.returncode
    assert "--cfg is missing." in finished.stderr


def test_an_interrupted_run_is_resumed(folder):
    """Ctrl-C exits with 130 and names the way on; a bare --resume trains the epochs left."""
    arguments = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK[:-1], "5", "--batch", "4")
    running = memplan_started("train", *arguments, "--project", "stopped", cwd=folder)
    for line in running.stderr:
        if line.startswith("epoch 2/5:"):
            os.kill(running.pid, signal.SIGINT)
            break
    _, said = running.communicate(timeout=120)
    assert 130 == running.returncode
    assert "Continue with: memplan train --resume stopped/exp\n" in said

    arguments = ("--resume", "--device", "cpu", "--workers", "0", "--noplots")
    finished = memplan("train", *arguments, cwd=folder)

    assert 0 == finished.returncode, finished.stderr
    epochs = pd.read_csv(folder / "stopped/exp/results.csv")["epoch"].tolist()
    assert list(range(1, 6)) == epochs


def test_ctrl_c_twice_ends_at_once_and_without_a_traceback(folder):
    """The second one, soon after the first, does not wait for the step."""
    arguments = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK[:-1], "50", "--batch", "4")
    running = memplan_started("train", *arguments, "--project", "twice", cwd=folder)
    for line in running.stderr:
        if line.startswith("epoch 2/50:"):
            for _ in range(2):
                os.kill(running.pid, signal.SIGINT)
                time.sleep(0.01)
            break
    _, said = running.communicate(timeout=120)

    # -2 where the second one came when all was said, and Python was about to end.
    assert running.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said
    assert "Continue with: memplan train --resume twice/exp\n" in said


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--cfg", "yolov9-q"), 1, "Did you mean 'yolov9-"),
        (("--data", "none.yaml"), 1, "No data description at none.yaml."),
        (("--batch", "0"), 2, "--batch 0 is below 1."),
        (("--img", "0"), 2, "--img 0 is below 1."),
        (("--device", "0"), 1, "Use --device cpu."),
        (("--weights", "none.pt"), 1, "none.pt"),
    ],
)
def test_bad_options_are_one_line(folder, arguments, exit_code, message):
    """Each ends at once with its exit code, one line on standard error and nothing on output."""
    given = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK)
    finished = memplan("train", *given, *arguments, "--project", "bad", cwd=folder)

    assert (exit_code, "") == (finished.returncode, finished.stdout)
    assert finished.stderr.startswith("Error: ")
    assert 1 == finished.stderr.count("\n")
    assert message in finished.stderr
    assert not (folder / "bad").exists()


def test_a_corrupt_image_is_skipped_and_said(tmp_path):
    """The run goes on with the other images after a warning that names the file."""
    write_set(tmp_path / "set")
    (tmp_path / "set/images/train/0.png").write_bytes(b"\x89PNG no more")
    arguments = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK, "--noplots")
    finished = memplan("train", *arguments, cwd=tmp_path)

    assert 0 == finished.returncode, finished.stderr
    assert "Warning: 1 images in 'train' of set/data.yaml cannot be used" in finished.stderr
    assert "cpu in fp32: 7 images" in finished.stderr


def test_a_label_out_of_range_is_refused(tmp_path):
    """The error names file, line and value."""
    write_set(tmp_path / "set")
    (tmp_path / "set/labels/train/0.txt").write_text("5 0.5 0.5 0.2 0.2\n")
    arguments = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK)
    finished = memplan("train", *arguments, cwd=tmp_path)

    assert 1 == finished.returncode
    assert finished.stderr.startswith("Error: ")
    assert 1 == finished.stderr.count("\n")
    assert "labels/train/0.txt" in finished.stderr


class _Malice:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_malicious_checkpoint_is_refused_unread(tmp_path):
    """Neither --weights nor --resume runs what is in the file."""
    write_set(tmp_path / "set")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(_Malice()))
    given = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK)
    for arguments in ((*given, "--weights", "evil.pt"), ("--resume", "evil.pt")):
        finished = memplan("train", *arguments, cwd=tmp_path)

        # A file that stands in no run folder cannot be resumed at all, which is wrong usage.
        assert finished.returncode == (2 if "--resume" in arguments else 1)
        assert finished.stderr.startswith("Error: ")
        assert 1 == finished.stderr.count("\n")
        assert not (tmp_path / "harmed").exists()


def test_a_run_folder_that_exists_is_left_alone(planned, folder):
    """A second run of the same name gets a folder with a number."""
    assert 0 == planned.returncode
    before = (folder / "runs/train/planned/results.csv").read_bytes()
    arguments = ("--cfg", "yolov9-t", "--data", "set/data.yaml", *QUICK, "--noplots")
    finished = memplan("train", *arguments, "--name", "planned", cwd=folder)

    assert 0 == finished.returncode, finished.stderr
    assert "records in runs/train/planned2" in finished.stderr
    assert before == (folder / "runs/train/planned/results.csv").read_bytes()
