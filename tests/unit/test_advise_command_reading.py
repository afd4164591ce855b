"""A command typed for the official script is read as it would run, or refused with a way out."""

from pathlib import Path

import pytest

from memplan.advise.command_reading import read_command
from memplan.errors import UsageError
from memplan.spec import StepSpec

OFFICIAL = "python train_dual.py --workers 8 --device 0 --cfg models/detect/yolov9-s.yaml"


def test_official_command_says_what_a_plan_is_asked():
    """Batch, accumulation to the nominal 64 and the recipe's defaults are those of the script."""
    typed = read_command(f"{OFFICIAL} --batch 16 --img 320 --data no.yaml --weights ''")

    assert (16, 4, True) == (
        typed.split.micro_batch_size,
        typed.split.accumulation_steps,
        typed.is_official,
    )
    assert ("models/detect/yolov9-s.yaml", 320) == (typed.workload, typed.arguments["image_size"])
    assert StepSpec() == typed.spec
    assert 64 == typed.split.effective_batch_size
    assert ("no.yaml cannot be read on this machine: 20 objects an image are assumed.",) == (
        typed.assumptions
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"--batch": "8"}, "python train_dual.py --cfg yolov9-s --device 0 --batch 8"),
        ({"--lean": ""}, "memplan train --batch-size=16 --cfg yolov9-s --device 0 --lean"),
    ],
)
def test_revised_command_replaces_what_was_typed(options, line):
    """The batch is replaced under any spelling; an option of memplan's own changes the program."""
    typed = read_command("python train_dual.py --batch-size=16 --cfg yolov9-s --device 0")

    assert line == typed.revised(options)


def test_allocator_options_stand_before_the_program():
    """What the command sets in the environment is read, and kept in front when it is revised."""
    text = f"PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128 {OFFICIAL} --batch 4"
    typed = read_command(text)

    assert "max_split_size_mb:128" == typed.spec.allocator
    assert typed.revised({"--batch": "2"}).startswith(
        "PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128 python train_dual.py"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("python detect.py --cfg yolov9-s", "is no training command"),
        (f"{OFFICIAL} --batch 'x", "cannot be read: No closing quotation"),
        (f"{OFFICIAL} --batch x", "'x' is not a valid integer"),
        (f"{OFFICIAL} --batch 0", "--batch 0 is below 1"),
        (f"{OFFICIAL} --batch -1", "plans its batch itself"),
        (f"{OFFICIAL} --batch 4 --quad", "Leave out --quad"),
        (f"{OFFICIAL} --batch 4 --resume", "Give that run's command"),
        (f"torchrun --nproc_per_node gpu {OFFICIAL} --batch 4", "is no number of processes"),
        ("train_dual.py --device 0,1 --cfg yolov9-s --batch 5", "does not divide by 2. Nearest: 4"),
        (
            "torchrun --nproc-per-node=4 train_dual.py --device 0,1 --cfg yolov9-s",
            "as many of each",
        ),
        ("yolo detect train model=yolov8n.pt data=coco8.yaml", "memplan run --gpu NAME"),
        ("yolo train model=yolov9s.pt rect=True", "what rect=True of a yolo command does"),
        ("train_dual.py --cfg yolov9-s --no 1", "Write it out in the command"),
        ("train_dual.py --batch 4 --device 0", "has no --cfg"),
    ],
)
def test_commands_that_cannot_be_checked_are_refused(text, reason):
    """One line says why, and what to do."""
    with pytest.raises(UsageError) as refused:
        read_command(text)

    message = str(refused.value)
    assert reason in message
    assert "--fit" in message
    assert "\n" not in message


PASTED = [
    ("python train_dual.py --batch 16 \\\n  --img 320 \\\n  --cfg yolov9-s --device 0", {}),
    ("python train_dual.py --batch 16 ^\r\n --img 320 --cfg yolov9-s", {}),
    (r"python train_dual.py --batch 16 --img 320 --cfg models\detect\yolov9-s.yaml", {}),
    ("export A=1 && cd yolov9; python -u train_dual.py --batch 16 --img 320 --cfg yolov9-s", {}),
    ("nohup python train_dual.py --batch 16 --img 320 --cfg yolov9-s > log.txt 2>&1 &", {}),
    ("python train_dual.py --batch 16 --img 320 --cfg yolov9-s 2>&1 | tee -a log", {}),
    ("python train_dual.py --batc 16 --imgs 320 --cfg yolov9-s --worker 4", {}),
    ("CUDA_VISIBLE_DEVICES=0 python3 ./train_dual.py --batch 16 --imgsz 320 --cfg yolov9-s", {}),
    (
        "torchrun --nproc_per_node 2 train_dual.py --batch 32 --img 320 --cfg gelan-s",
        {"workload": "gelan-s", "devices": 2},
    ),
    ("python train_dual.py --device 0,1 --batch 32 --img 320 --cfg yolov9-s", {"devices": 2}),
    ("yolo detect train model=yolov9s.pt imgsz=320 batch=16 epochs=3", {"workload": "gelan-s"}),
]


@pytest.mark.parametrize(("text", "more"), PASTED)
def test_pasted_commands_are_read_as_a_shell_reads_them(text, more):
    """Continued lines, paths of Windows, launchers, redirections and short options."""
    typed = read_command(text)

    assert (16, 320) == (typed.split.micro_batch_size, typed.arguments["image_size"])
    expected = {"workload": "yolov9-s", "devices": 1} | more
    assert Path(typed.workload).stem == expected["workload"]
    assert typed.split.devices == expected["devices"]


@pytest.mark.parametrize(
    "before",
    [
        "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True && ",
        "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True & ",
        "env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True ",
        "$env:PYTORCH_CUDA_ALLOC_CONF='expandable_segments:True'; ",
        "PYTORCH_ALLOC_CONF=expandable_segments:True\n",
    ],
)
def test_variables_of_the_line_are_read_wherever_they_are_set(before):
    """The allocator's options decide the answer, so none is lost."""
    typed = read_command(f"{before}{OFFICIAL} --batch 4")

    assert "expandable_segments:True" == typed.spec.allocator


def test_what_is_not_read_is_named():
    """Other commands of the line may matter, and nothing is guessed of them."""
    typed = read_command(f"pip install foo && {OFFICIAL} --batch 4")

    assert "'pip install foo' is left out of the reading." in typed.assumptions


@pytest.mark.parametrize(
    ("script", "cfg", "other"),
    [("train.py", "yolov9-s", "train_dual.py"), ("train_dual.py", "gelan-c", "train.py")],
)
def test_a_command_that_the_script_cannot_run_is_said_so(script, cfg, other):
    """The most repeated question of the official repository."""
    typed = read_command(f"python {script} --cfg {cfg} --batch 4")

    said = f"{script} cannot train {cfg}, and stops at its first loss: {other} does."
    assert said in typed.assumptions
    typed = read_command(f"python {other} --cfg {cfg} --batch 4")
    assert not [one for one in typed.assumptions if "cannot train" in one]
