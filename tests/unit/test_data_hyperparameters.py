"""Hyperparameters: official values, and what is refused."""

import pytest
from memplan_models.yolo_data.hyperparameters import load_hyperparameters, read_hyperparameters

from memplan.errors import BadInputError

OFFICIAL = {
    "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3,
    "warmup_momentum": 0.8, "warmup_bias_lr": 0.1, "box": 7.5, "cls": 0.5, "cls_pw": 1, "obj": 0.7,
    "obj_pw": 1, "dfl": 1.5, "iou_t": 0.2, "anchor_t": 5, "fl_gamma": 0, "hsv_h": 0.015,
    "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 0, "translate": 0.1, "scale": 0.9, "shear": 0,
    "perspective": 0, "flipud": 0, "fliplr": 0.5, "mosaic": 1, "mixup": 0.15, "copy_paste": 0.3,
}  # fmt: skip


def test_the_default_is_the_official_recipe():
    """Without a file the values are those of the official scratch-high."""
    assert OFFICIAL == load_hyperparameters()


@pytest.mark.parametrize("name", ["scratch-low.yaml", "scratch-low", "data/hyp.scratch-low.yaml"])
def test_files_that_ship_are_found_by_name(name):
    """A shipped file is found by its name, also by the official one; it has the same keys."""
    values = load_hyperparameters(name)

    assert OFFICIAL.keys() == values.keys()
    assert 0 == values["mixup"]


def test_a_partial_file_changes_only_what_it_names(tmp_path):
    """What a file leaves out keeps scratch-high's value; 1e-4 without a point is a number."""
    (tmp_path / "hyp.yaml").write_text("lr0: 1e-4\nmosaic: 0\n")

    assert OFFICIAL | {"lr0": 1e-4, "mosaic": 0} == load_hyperparameters(tmp_path / "hyp.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr0: fast\n", "lr0 is 'fast', which is not a number"),
        ("lr0: true\n", "lr0 is True, which is not a number"),
        ("lr0: .nan\n", "lr0 is nan"),
        ("mosaic: 1.5\n", "a probability is 0 to 1"),
        ("scale: 1.0\n", "below 1"),
        ("degrees: -5\n", "0 or more"),
        ("- lr0\n", "holds no mapping"),
        ("{", "not readable as YAML"),
    ],
)
def test_a_bad_value_is_told_by_name(tmp_path, text, message):
    """The message names the file, the key and the value."""
    (tmp_path / "hyp.yaml").write_text(text)

    with pytest.raises(BadInputError, match=message):
        load_hyperparameters(tmp_path / "hyp.yaml")


def test_an_unknown_key_suggests_the_nearest(tmp_path):
    """A misspelt key is passed over and told with the nearest known one; others' keys as well."""
    (tmp_path / "hyp.yaml").write_text("mosiac: 1\npaste_in: [no number]\nlr0: 0.02\n")

    values, warnings = read_hyperparameters(tmp_path / "hyp.yaml")

    assert (0.02, 1.0) == (values["lr0"], values["mosaic"])
    assert ["mosiac is no hyperparameter here and is passed over. Did you mean mosaic?",
            "paste_in is no hyperparameter here and is passed over."] == [
        warning.partition(": ")[2] for warning in warnings
    ]  # fmt: skip


def test_gains_that_the_official_loss_does_not_read_are_told_with_both_values(tmp_path):
    """`box: 0.05` of another YOLO release counts here, where the official loss has 7.5."""
    (tmp_path / "hyp.yaml").write_text("box: 0.05\ncls: 0.5\n")

    values, [warning] = read_hyperparameters(tmp_path / "hyp.yaml")

    assert 0.05 == values["box"]
    assert "box is 0.05, which counts here; the official loss multiplies by 7.5" in warning
    assert warning.endswith("--official-gains takes that.")


def test_official_gains_take_the_place_of_a_files_own(tmp_path):
    """With the option the loss weighs as the official one, and each value passed over is told."""
    (tmp_path / "hyp.yaml").write_text("box: 0.05\ncls: 0.5\nlr0: 0.02\n")

    values, [warning] = read_hyperparameters(tmp_path / "hyp.yaml", official_gains=True)

    assert (7.5, 0.5, 1.5, 0.02) == tuple(values[name] for name in ("box", "cls", "dfl", "lr0"))
    assert "box is 0.05, but 7.5 is taken (--official-gains)" in warning


def test_a_missing_file_names_those_that_ship(tmp_path):
    """A path that does not exist is told with the shipped names."""
    with pytest.raises(BadInputError, match=r"scratch-high\.yaml, scratch-low\.yaml"):
        load_hyperparameters(tmp_path / "mine.yaml")
