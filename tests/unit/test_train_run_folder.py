"""The run folder: its name, and records that survive a crash."""

import pandas as pd
import pytest

from memplan.errors import BadInputError
from memplan.training.run_folder import MEMORY_COLUMNS, RunFolder, create_run_folder


def test_names_are_numbered_from_two(tmp_path):
    """exp, exp2, exp3: a run never writes into another's folder."""
    names = [create_run_folder(tmp_path, "exp", exist_ok=False).path.name for _ in range(3)]

    assert ["exp", "exp2", "exp3"] == names


def test_exist_ok_replaces_the_records(tmp_path):
    """The same folder is used, without the earlier run's rows."""
    create_run_folder(tmp_path, "exp", exist_ok=False).add_result({"epoch": 1})
    folder = create_run_folder(tmp_path, "exp", exist_ok=True)

    assert "exp" == folder.path.name
    assert not (folder.path / "results.csv").exists()


def test_a_project_that_is_a_file_is_refused(tmp_path):
    """The message is one line and names the folder."""
    (tmp_path / "file").touch()

    with pytest.raises(BadInputError, match="cannot be made"):
        create_run_folder(tmp_path / "file", "exp", exist_ok=False)


def test_columns_may_join_later(tmp_path):
    """An epoch without evaluation has empty fields, not a shorter row."""
    folder = RunFolder(tmp_path)
    folder.add_result({"epoch": 1, "loss": 0.5})
    folder.add_result({"epoch": 2, "loss": 0.4, "fitness": 0.1})

    table = pd.read_csv(tmp_path / "results.csv")
    assert ["epoch", "loss", "fitness"] == table.columns.tolist()
    assert [True, False] == table["fitness"].isna().tolist()


def test_rewinding_drops_later_epochs_and_torn_lines(tmp_path):
    """What will run again is forgotten, and a half-written row with it."""
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.add_result({"epoch": epoch})
        folder.add_memory(dict.fromkeys(MEMORY_COLUMNS, 0) | {"epoch": epoch})
    with (tmp_path / "memory.csv").open("a") as file:
        file.write("1,2")
    folder.rewind(1)

    assert [1] == pd.read_csv(tmp_path / "results.csv")["epoch"].tolist()
    assert [1] == pd.read_csv(tmp_path / "memory.csv")["epoch"].tolist()
