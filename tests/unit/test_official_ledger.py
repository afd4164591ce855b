"""The ledger of official options: complete, and true of the program.

Source: the options of the official train_dual.py, val_dual.py, detect_dual.py and export.py at the
commit that tests/golden/yolov9_shapes.json names, with their defaults where these are numbers.
"""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from memplan.cli import cli
from memplan.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs/official_options.md"
OFFICIAL = {
    "train": """
        --weights --cfg --data --hyp --epochs=100 --batch-size=16 --imgsz=640 --img --img-size
        --rect --resume --nosave --noval --noautoanchor --noplots --evolve --bucket --cache
        --image-weights --device --multi-scale --single-cls --optimizer=SGD --sync-bn --workers=8
        --project --name=exp --exist-ok --quad --cos-lr --flat-cos-lr --fixed-lr
        --label-smoothing=0.0 --patience=100 --freeze --save-period=-1 --seed=0 --local_rank
        --min-items=0 --close-mosaic=0 --entity --upload_dataset --bbox_interval --artifact_alias
    """,
    "val": """
        --data --weights --batch-size=32 --imgsz=640 --img --img-size --conf-thres=0.001
        --iou-thres=0.7 --max-det=300 --task=val --device --workers=8 --single-cls --augment
        --verbose --save-txt --save-hybrid --save-conf --save-json --project --name=exp --exist-ok
        --half --dnn --min-items=0
    """,
    "predict": """
        --weights --source --data --imgsz=640 --img --img-size --conf-thres=0.25 --iou-thres=0.45
        --max-det=1000 --device --view-img --save-txt --save-conf --save-crop --nosave --classes
        --agnostic-nms --augment --visualize --update --project --name=exp --exist-ok
        --line-thickness=3 --hide-labels --hide-conf --half --dnn --vid-stride=1
    """,
    "export": """
        --data --weights --imgsz=640 --img --img-size --batch-size=1 --device --half --inplace
        --keras --optimize --int8 --dynamic --simplify --opset --verbose --workspace=4 --nms
        --agnostic-nms --topk-per-class --topk-all --iou-thres=0.45 --conf-thres=0.25 --include
    """,
}
WORDS = {
    name: [word.partition("=")[::2] for word in text.split()] for name, text in OFFICIAL.items()
}
VERDICTS = ("same", "different", "accepted", "refused")


def _ledger(command):
    """Return the verdict of each option in a command's table."""
    section = PAGE.read_text().partition(f"\n## memplan {command}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if not line.startswith("| `--"):
            continue
        options, verdict = line.strip("| ").split(" | ", 1)
        for option in re.findall(r"`(--[^`]+)`", options):
            assert option not in found, option
            found[option] = verdict
    return found


def _known(command):
    """Return the parameter of each spelling of a command's options."""
    parameters = cli.get_command(click.Context(cli), command).params
    return {name: one for one in parameters for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("command", OFFICIAL)
def test_the_ledger_lists_every_official_option_and_no_other(command):
    """A table has exactly the script's options, each with one of four verdicts first."""
    ledger = _ledger(command)

    assert sorted(name for name, _ in WORDS[command]) == sorted(ledger)
    assert {} == {name: one for name, one in ledger.items() if not one.startswith(VERDICTS)}


@pytest.mark.parametrize("command", OFFICIAL)
def test_the_program_does_what_the_ledger_says(command):
    """Hidden options are accepted or refused with their reason; all others are offered."""
    known, ledger = _known(command), _ledger(command)
    wrong = []
    for option, verdict in ledger.items():
        parameter = known[option]
        if not parameter.hidden:
            told = "accepted" if parameter.help.startswith("Accepted") else "offered"
        else:
            words = [option] if parameter.is_flag else [option, "1"]
            result = CliRunner().invoke(cli, [command, *words], standalone_mode=False)
            is_refused = isinstance(result.exception, UsageError)
            is_refused = is_refused and f"{option} is not offered" in str(result.exception)
            is_accepted = f"{option} changes nothing" in result.output
            told = "refused" if is_refused else "accepted" if is_accepted else "neither"
        stated = verdict.split()[0].strip(":;,.")
        if told != ("offered" if stated in {"same", "different"} else stated):
            wrong.append((option, stated, told))

    assert [] == wrong


@pytest.mark.parametrize("command", OFFICIAL)
def test_defaults_are_the_official_ones(command):
    """What is left out means the same number or name."""
    known = _known(command)
    differ = {
        name: (known[name].default, value)
        for name, value in WORDS[command]
        if value and str(known[name].default) not in {value, f"{value}.0", "None"}
    }

    assert {} == differ
