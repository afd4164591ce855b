"""Which configuration a weights file is of, and what happens to weights that hardly load."""

import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.workload import FAMILY, YoloV9

from memplan.errors import BadInputError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A bare state of yolov9-t with three classes, which says nothing of itself."""
    path = tmp_path_factory.mktemp("weights") / "bare.pt"
    torch.save(yolov9.build("yolov9-t", 3).state_dict(), path)
    return path


def test_a_weights_file_is_recognised_by_its_entries(weights):
    """No --cfg is needed where the entries fill a shipped configuration."""
    assert "yolov9-t" == FAMILY.cfg_of_weights(weights)


def test_weights_of_no_configuration_have_no_name(tmp_path):
    """A file of another program fits nothing."""
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")

    assert FAMILY.cfg_of_weights(tmp_path / "other.pt") is None


def test_evaluation_refuses_weights_that_leave_entries(weights):
    """The message says how many load, and which configuration would fit."""
    workload = YoloV9("gelan-s", num_classes=3)

    with pytest.raises(BadInputError, match=r"fills only .* It fits --cfg yolov9-t \((\d+) of \1"):
        workload.load_whole(workload.build_model(), weights)


def test_evaluation_takes_weights_that_fill_the_network(weights):
    """With the right configuration every entry is loaded."""
    workload = YoloV9("yolov9-t", num_classes=3)

    assert "Loaded 1772 of 1772" in workload.load_whole(workload.build_model(), weights)


def test_training_from_few_entries_says_so(weights):
    """One line, with the configuration that would fit."""
    workload = YoloV9("gelan-s", num_classes=3)

    line = workload.load_weights(workload.build_model(), weights)

    assert "training starts nearly from fresh weights. It fits --cfg yolov9-t" in line
