"""Training at many sizes: the draw, the resize on the device, the size memory is planned for."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from memplan_models.yolov9.workload import YoloV9
from train_toy import Toy, toy_options

from memplan.errors import UsageError
from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.tape import SECTIONS
from memplan.trace.record import record
from memplan.training import open_training, train


@pytest.mark.parametrize(
    ("size", "least", "most"), [(640, 320, 960), (672, 320, 1024), (64, 32, 96)]
)
def test_sides_are_drawn_as_the_recipe_draws_them(size, least, most):
    """From half the size to one and a half, in whole strides, each about as often."""
    workload = YoloV9("yolov9-t", image_size=size, multi_scale=True)
    rng = np.random.default_rng(0)
    drawn = Counter(workload.draw_side(rng) for _ in range(4000))

    assert (least, most) == (min(drawn), max(drawn))
    assert all(side % 32 == 0 for side in drawn)
    assert least != 320 or drawn[480] == pytest.approx(4000 * 32 / (size + 32), rel=0.3)


def test_without_the_option_sizes_stay():
    """No side is drawn and a batch passes as it is."""
    workload = YoloV9("yolov9-t", image_size=64)
    batch = workload.prepare(workload.make_batch(1))

    assert workload.draw_side(np.random.default_rng(0)) is None
    assert batch is workload.resize(batch, 96)


@pytest.mark.parametrize(("side", "shape"), [(None, (96, 96)), (32, (32, 32)), (64, (64, 64))])
def test_a_batch_is_resized_bilinearly(side, shape):
    """Images change, targets do not; no side means the largest, which recordings take."""
    workload = YoloV9("yolov9-t", image_size=64, multi_scale=True)
    images = torch.rand(2, 3, 64, 64)
    targets = torch.rand(2, 1, 5)
    resized = workload.resize({"images": images, "targets": targets}, side)
    expected = torch.nn.functional.interpolate(images, shape, mode="bilinear", align_corners=False)

    assert torch.equal(expected, resized["images"])
    assert targets is resized["targets"]


def test_rectangles_keep_their_proportion():
    """The longer side takes the drawn size, the shorter one is rounded up to whole strides."""
    workload = YoloV9("yolov9-t", image_size=128, multi_scale=True)
    resized = workload.resize({"images": torch.zeros(1, 3, 96, 128)}, 192)

    assert (144 // 32 * 32 + 32, 192) == tuple(resized["images"].shape[2:])


def test_memory_is_recorded_at_the_largest_size():
    """A micro-batch of 64 pixels does the work of one of 96, the largest that is drawn."""
    settings = StepSpec(precision="fp32")
    many = record(YoloV9("yolov9-t", image_size=64, multi_scale=True), 1, settings)
    large = record(YoloV9("yolov9-t", image_size=96), 1, settings)
    plain = record(YoloV9("yolov9-t", image_size=64), 1, settings)
    plain_work, large_work, many_work = map(_work_of_a_micro_batch, (plain, large, many))

    assert large_work == many_work
    assert 2.25 == pytest.approx(many_work / plain_work, rel=0.05)


def _work_of_a_micro_batch(tape):
    """Return a micro-batch's floating point operations, which grow with the area."""
    operators = tape.operators
    return int(operators.flops[operators.section == SECTIONS.index("micro_batch")].sum())


def test_a_workload_of_one_size_refuses_the_option():
    """--multi-scale with a classifier is a one-line error."""
    with pytest.raises(UsageError, match="multi_scale"):
        make_workload("torchvision:resnet18", {"multi_scale": True})


def test_the_trainer_asks_for_many_sizes(tmp_path):
    """The option reaches the workload's factory."""
    given = {}

    def factory(**arguments):
        given.update(arguments)
        return Toy()

    open_training(factory, toy_options(tmp_path, multi_scale=True))

    assert given["multi_scale"]


class _ManySizes(Toy):
    """Notes the sides that it is given; its layers take any batch as it is."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.sides = []

    def draw_side(self, generator):
        return int(generator.integers(100))

    def resize(self, batch, side=None):
        self.sides.append(side)
        return batch


class _KilledError(Exception):
    """Stands for the end of a process."""


def test_sides_follow_from_seed_epoch_and_place(tmp_path):
    """A run stopped in the middle of an epoch goes on with the sides it would have had."""
    options = {"batch": 2, "effective_batch": 2, "save_every": 1e-9}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = _ManySizes()
    folder = train(straight, toy_options(tmp_path / "a", **options)).run_folder

    def on_event(name, facts):
        if name == "saved" and facts["epoch"] == 1 and facts.get("images") == 6:
            raise _KilledError

    first, second = _ManySizes(), _ManySizes()
    with pytest.raises(_KilledError):
        train(first, toy_options(tmp_path / "b", **options), on_event=on_event)
    resumed = toy_options(tmp_path / "b", resume=tmp_path / "b/runs/toy")
    train(second, resumed)

    assert straight.sides == first.sides + second.sides
    assert 10 == len(straight.sides)
    assert 5 < len(set(straight.sides))
    assert [1, 2] == pd.read_csv(folder / "results.csv")["epoch"].tolist()
