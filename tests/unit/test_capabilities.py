"""A workload offers what it has methods for, and nothing else is asked of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from memplan_models.official import Official
from memplan_models.torchvision import Classification
from memplan_models.torchvision_detection import Detection
from memplan_models.yolov9.workload import YoloV9

from memplan import capabilities
from memplan.errors import BadInputError, UsageError
from memplan.spec import StepSpec, check_step
from memplan.step.run import TrainingStep
from memplan.workload import Workload

EVERY = {
    name: kind
    for name, kind in vars(capabilities).items()
    if isinstance(kind, type)
    and getattr(kind, "_is_protocol", False)
    and kind.__module__ != "typing"
}


class Core(Workload):
    """The three methods that a workload needs, and no other."""

    name = "core"
    image_size = 8

    def build_model(self):
        """Return one layer."""
        return torch.nn.Linear(4, 2)

    def make_batch(self, micro_batch_size):
        """Return ones."""
        return {"images": torch.ones(micro_batch_size, 4)}

    def compute_loss(self, model, batch):
        """Return the sum of the outputs."""
        loss = model(batch["images"]).sum()
        return loss, loss.detach()[None]


def _offered(workload):
    return {name for name, kind in EVERY.items() if isinstance(workload, kind)}


def test_three_methods_are_a_workload_with_no_capability():
    """It builds, steps, predicts and saves all the same."""
    workload = Core()
    step = TrainingStep(workload, StepSpec(precision="fp32"), torch.device("cpu"))
    batch = step.training_batch(workload.make_batch(2), 16)
    step.accumulate(batch)
    step.update()
    step.save()

    assert set() == _offered(workload)
    assert (2, 4) == batch["images"].shape
    assert (2, 2) == step.evaluate(batch)[0].shape


def test_each_family_offers_what_it_has():
    """A new capability is told here of the families that have it."""
    classifier = Classification("resnet18")
    official = Official.__new__(Official)
    official.hyperparameters = {}

    others = {"KnowsWeights", "MakesOptimizer", "Noted", "SavesItself"}
    assert EVERY.keys() - others == _offered(YoloV9("yolov9-t"))
    assert {"Noted"} == _offered(Detection("ssd300_vgg16"))
    assert {"Validates"} == _offered(classifier)
    assert {
        "Crowds", "MakesOptimizer", "SavesItself", "Tuned", "Validates",
    } == _offered(official)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda core: capabilities.reader_of_data(core, Path("x")), "--data x: workload 'core'"),
        (
            lambda core: capabilities.reader_of_weights(core, "w.pt"),
            "--weights w.pt cannot be used",
        ),
        (lambda core: capabilities.exporter(core, Path("w.pt")), "'core' exports nothing"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(asked, words):
    """The option, the workload and the way out are named."""
    with pytest.raises(BadInputError, match=words) as caught:
        asked(Core())

    assert 1 == len(str(caught.value).splitlines())


def test_lean_is_refused_by_name():
    """Only a workload with lean blocks takes --lean."""
    with pytest.raises(UsageError, match="--lean: workload 'core' has no lean blocks"):
        check_step(Core(), StepSpec(lean=True))
    check_step(YoloV9("yolov9-t"), StepSpec(lean=True, fused=True))


def test_what_a_workload_does_not_say_has_a_plain_default():
    """No validation, no hyperparameters, and images that are read as they are."""
    drawn = capabilities.object_counts(Core(), np.array([3]), 5, np.random.default_rng(0))

    assert capabilities.validation_batch(Core(), 2) is None
    assert {} == capabilities.hyperparameters(Core())
    assert [3] * 5 == drawn.tolist()
