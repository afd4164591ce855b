"""The command lines of the official README, with the program's name changed to memplan's.

Sizes are smaller (a network of size t on few images of 64 px on the CPU); every option stays.
Source: https://github.com/WongKinYiu/yolov9, README.md at 5b1ea9a, sections Evaluation, Training
and Inference; the line of `export.py` is made of its own options, as the README has none.
"""

import csv
import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys

import click
import pytest
from cli_inside import runner
from cli_set import _environment, write_set
from memplan_models.yolov9 import official_file
from memplan_models.yolov9.convert import drop_auxiliary
from memplan_models.yolov9.trained import read_trained

from memplan.cli import cli

TRAIN = {
    "yolov9": "python train_dual.py --workers 8 --device 0 --batch 16 --data data/coco.yaml "
    "--img 640 --cfg models/detect/yolov9-c.yaml --weights '' --name yolov9-c "
    "--hyp hyp.scratch-high.yaml --min-items 0 --epochs 500 --close-mosaic 15",
    "gelan": "python train.py --workers 8 --device 0 --batch 32 --data data/coco.yaml --img 640 "
    "--cfg models/detect/gelan-c.yaml --weights '' --name gelan-c --hyp hyp.scratch-high.yaml "
    "--min-items 0 --epochs 500 --close-mosaic 15",
}
SEVERAL = {
    "yolov9": "python -m torch.distributed.launch --nproc_per_node 8 --master_port 9527 "
    "train_dual.py --workers 8 --device 0,1,2,3,4,5,6,7 --sync-bn --batch 128 "
    "--data data/coco.yaml --img 640 --cfg models/detect/yolov9-c.yaml --weights '' "
    "--name yolov9-c --hyp hyp.scratch-high.yaml --min-items 0 --epochs 500 --close-mosaic 15",
    "gelan": "python -m torch.distributed.launch --nproc_per_node 4 --master_port 9527 train.py "
    "--workers 8 --device 0,1,2,3 --sync-bn --batch 128 --data data/coco.yaml --img 640 "
    "--cfg models/detect/gelan-c.yaml --weights '' --name gelan-c --hyp hyp.scratch-high.yaml "
    "--min-items 0 --epochs 500 --close-mosaic 15",
}
_VAL = "--data data/coco.yaml --img 640 --batch 32 --conf 0.001 --iou 0.7 --device 0"
VAL = (
    f"python val.py {_VAL} --weights './yolov9-c-converted.pt' --save-json --name c_c_640_val",
    f"python val_dual.py {_VAL} --weights './yolov9-c.pt' --save-json --name yolov9_c_640_val",
    f"python val.py {_VAL} --weights './gelan-c.pt' --save-json --name gelan_c_640_val",
)
_DETECT = "--source './data/images/horses.jpg' --img 640 --device 0"
DETECT = (
    f"python detect.py {_DETECT} --weights './yolov9-c-converted.pt' --name yolov9_c_c_640_detect",
    f"python detect_dual.py {_DETECT} --weights './yolov9-c.pt' --name yolov9_c_640_detect",
    f"python detect.py {_DETECT} --weights './gelan-c.pt' --name gelan_c_c_640_detect",
)
EXPORT = (
    "python export.py --weights './gelan-c.pt' --include torchscript onnx --imgsz 640 640 "
    "--batch-size 1 --device cpu --simplify --opset 13"
)
COMMANDS = {"train_dual.py": "train", "train.py": "train", "val.py": "val", "val_dual.py": "val",
            "detect.py": "predict", "detect_dual.py": "predict", "export.py": "export"}  # fmt: skip
SMALLER = {"--device": "cpu", "--img": "64", "--batch": "4", "--epochs": "1", "--workers": "0"}


def _ours(line):
    """Return the arguments of `memplan` that a line becomes, smaller."""
    words = shlex.split(
        line.replace("/yolov9-c.yaml", "/yolov9-t.yaml").replace("640 640", "64 64")
    )
    while words[0] not in COMMANDS:
        words.pop(0)
    made = [COMMANDS[words[0]]]
    for option, word in itertools.pairwise(words):
        made.append(SMALLER.get(option, word))
    return [word.replace("/gelan-c.yaml", "/gelan-t.yaml") for word in made]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    """Return a folder laid out as a checkout: data/coco.yaml and a picture; no models, no hyp."""
    folder = tmp_path_factory.mktemp("checkout")
    write_set(folder / "data", suffix=".jpg").rename(folder / "data" / "coco.yaml")
    shutil.copy(folder / "data/images/val/0.jpg", folder / "data/images/horses.jpg")
    return folder


@pytest.fixture(name="memplan")
def _memplan(folder, monkeypatch, capsys):
    """Return a function that runs `memplan ARGUMENTS...` in the folder, which must succeed."""
    monkeypatch.chdir(folder)
    run = runner(monkeypatch, capsys)

    def succeeds(*arguments):
        done = run(*arguments)
        assert 0 == done.code, done.err
        return done

    return succeeds


@pytest.mark.parametrize("kind", TRAIN)
def test_training(kind, memplan, folder):
    """The run, then the released files' counterparts for the other commands, from its weights."""
    done = memplan(*_ours(TRAIN[kind]))
    weights = folder / f"runs/train/{kind}-c/weights/best.pt"

    assert "Trained 1 epoch" in done.out
    assert "--close-mosaic 15" in done.err  # above --epochs: mosaics stay, and that is said
    if kind == "gelan":
        shutil.copy(weights, folder / "gelan-c.pt")
        return
    trained = read_trained(weights)
    small = drop_auxiliary(trained.net).net
    official_file.write(folder / "yolov9-c.pt", trained.net, trained.class_names, None)
    official_file.write(folder / "yolov9-c-converted.pt", small, trained.class_names, None)


@pytest.mark.parametrize("line", VAL)
def test_evaluation(line, memplan, folder):
    """Of converted, dual and GELAN weights: metrics by class and COCO's result file."""
    memplan(*_ours(line))

    results = folder / "runs/val" / line.rpartition(" ")[2]
    stem = re.search(r"'\./(.*)\.pt'", line)[1]
    assert isinstance(json.loads((results / f"{stem}_predictions.json").read_text()), list)
    with (results / "per_class.csv").open() as file:
        assert ["all", "a", "b"] == [row["class"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("line", DETECT)
def test_inference(line, memplan, folder):
    """The picture is written with its boxes."""
    memplan(*_ours(line))

    assert (folder / "runs/detect" / line.rpartition(" ")[2] / "horses.jpg").is_file()


def test_export(memplan, folder):
    """Both files, as `--include` asks."""
    memplan(*_ours(EXPORT))

    assert (folder / "gelan-c.torchscript").is_file()
    assert (folder / "gelan-c.onnx").is_file()


def test_training_on_several_devices(folder):
    """Under the launcher that the README names, which puts --local-rank before the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("torch.distributed.launch", "--nproc_per_node", "2", "--master_port", str(port))
    arguments = [word for word in _ours(SEVERAL["yolov9"]) if word != "--sync-bn"]
    command = [sys.executable, "-m", *launcher, "-m", "memplan", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert 1 == done.stdout.count("Trained 1 epoch")
    assert (
        "2 at once on each of 2 devices" in done.stderr
    )  # --batch is the total, officially and here


@pytest.mark.parametrize("kind", SEVERAL)
def test_every_option_for_several_devices_is_known(kind):
    """Also --sync-bn, which needs GPUs to run."""
    name, *arguments = _ours(SEVERAL[kind])
    context = click.Context(cli)
    command = cli.get_command(context, name)

    with command.make_context(name, arguments, parent=context) as made:
        assert made.params["sync_bn"]
