"""The callbacks of trainers that are not installed."""

import importlib
import sys

import pytest

from memplan.errors import MemplanError


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("lightning", ("lightning", "lightning.pytorch", "pytorch_lightning")),
        ("huggingface", ("transformers",)),
        ("ultralytics", ("ultralytics",)),
    ],
)
def test_a_trainer_that_is_not_installed_is_told_in_one_line(name, packages, monkeypatch):
    """The import names the package and how to install it."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"memplan.trainers.{name}", raising=False)

    with pytest.raises(MemplanError, match="pip install") as raised:
        importlib.import_module(f"memplan.trainers.{name}")

    assert "\n" not in str(raised.value)
