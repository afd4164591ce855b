"""A command typed for the official script is read as it would run, or refused with a way out."""

import pytest

from memplan.cli.fit_command import read_command
from memplan.errors import UsageError
from memplan.spec import StepSpec

OFFICIAL = "python train_dual.py --workers 8 --device 0 --cfg models/detect/yolov9-s.yaml"


def test_official_command_says_what_a_plan_is_asked():
    """Batch, accumulation to the nominal 64 and the recipe's defaults are those of the script."""
    typed, asked = read_command(f"{OFFICIAL} --batch 16 --img 320 --data no.yaml --weights ''")

    assert (16, 4, True) == (
        typed.split.micro_batch_size,
        typed.split.accumulation_steps,
        typed.is_official,
    )
    assert ("models/detect/yolov9-s.yaml", 320) == (asked["cfg"], asked["img"])
    assert StepSpec() == typed.spec
    assert 64 == asked["effective_batch"]
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
    typed, _ = read_command("python train_dual.py --batch-size=16 --cfg yolov9-s --device 0")

    assert line == typed.revised(options)


def test_allocator_options_stand_before_the_program():
    """What the command sets in the environment is read, and kept in front when it is revised."""
    text = f"PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:128 {OFFICIAL} --batch 4"
    typed, asked = read_command(text)

    assert "max_split_size_mb:128" == asked["allocator"]
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
        (f"torchrun --nproc_per_node 2 {OFFICIAL} --batch 4", "memplan plan --devices N"),
        ("train_dual.py --device 0,1 --cfg yolov9-s --batch 4", "--device 0"),
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
