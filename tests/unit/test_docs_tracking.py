"""The page's ten lines report a run's epochs to a tracking service."""

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from train_toy import Toy

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def logged(monkeypatch):
    """What is logged to Weights & Biases, whose package is stood in for."""
    rows = []
    run = SimpleNamespace(log=lambda row, step: rows.append((step, row)))
    service = SimpleNamespace(init=lambda project: run)  # noqa: ARG005 - its signature
    monkeypatch.setitem(sys.modules, "wandb", service)
    return rows


def test_each_epoch_is_reported_with_its_row_of_the_table(logged, tmp_path):
    """Losses, metrics, rates and speed come once an epoch, as results.csv has them."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "wandb" in block)
    (tmp_path / "data.yaml").touch()
    lines = block.replace('"yolov9-s", data="data.yaml"', "Toy(), **options")
    options = {
        "data": tmp_path / "data.yaml", "device": "cpu", "epochs": 2, "noplots": True,
        "project": tmp_path,
    }  # fmt: skip

    exec(compile(lines, str(PAGE), "exec"), {"Toy": Toy, "options": options})

    with (tmp_path / "exp" / "results.csv").open() as file:
        table = list(csv.DictReader(file, skipinitialspace=True))
    assert len([line for line in block.splitlines() if line]) <= 10
    assert [1, 2] == [step for step, _ in logged]
    assert [float(row["train/error"]) for row in table] == pytest.approx(
        [row["train/error"] for _, row in logged], rel=1e-4
    )
