"""A plan matches objects in parts where crowded images would cost it more, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from memplan_models.yolov9.workload import YoloV9

from memplan.advise import Question
from memplan.advise.planning import plan_one, recordings_of
from memplan.spec import StepSpec

CROWDED = {"image_size": 160, "objects_per_image": 600}
SET = {"assigner_parts"}
NOT_EVEN_PARTS = set()
ROOMY = 24 << 30


@pytest.fixture(scope="module")
def plan():
    """Return a function that plans 32 images a step within so many bytes."""
    question = Question(workload="yolov9-t", arguments=CROWDED, gpus=("rtx-3090",))
    recordings = recordings_of(question)

    def made(num_bytes, free, parts=1):
        return plan_one(
            replace(question, capacity_bytes=num_bytes, spec=StepSpec(assigner_parts=parts)),
            effective_batch_size=32,
            safety_fraction=0.0,
            free=free,
            recordings=recordings,
        )

    return made


def _used(plan, parts):
    """Return the device bytes of 32 images at once with objects matched in so many parts."""
    roomy = plan(ROOMY, NOT_EVEN_PARTS, parts)
    assert 32 == roomy.split.micro_batch_size
    return roomy.predicted.device_used_peak_bytes


def test_parts_are_taken_where_they_alone_make_the_fastest_batch_fit(plan):
    """Between what 32 images take in parts and as a whole; never where the whole fits."""
    whole, parted = _used(plan, 1), _used(plan, 4)
    assert parted < 0.97 * whole

    eased = plan((whole + parted) // 2, SET)
    plain = plan((whole + parted) // 2, NOT_EVEN_PARTS)
    roomy = plan(2 * whole, SET)

    assert (4, 32, 1) == (
        eased.spec.assigner_parts,
        eased.split.micro_batch_size,
        eased.split.accumulation_steps,
    )
    assert "--assigner-parts 4" in eased.command
    assert eased.predicted.images_per_second > plain.predicted.images_per_second
    assert (1, 1) == (plain.spec.assigner_parts, roomy.spec.assigner_parts)
    assert "--assigner-parts" not in roomy.command
    assert roomy.predicted.images_per_second >= eased.predicted.images_per_second


def test_parts_change_no_loss_and_no_gradient():
    """Three images in two parts give the bits of the whole batch."""
    torch.manual_seed(0)
    whole = YoloV9("yolov9-t", num_classes=3, image_size=64, objects_per_image=5)
    parted = YoloV9("yolov9-t", num_classes=3, image_size=64, objects_per_image=5, assigner_parts=2)
    model = whole.build_model()
    batch = whole.make_batch(3)
    batch["images"] = torch.rand(3, 3, 64, 64)
    batch["targets"][..., 1:] = torch.rand(3, 5, 4) * 0.5 + 0.2

    found = []
    for workload in (whole, parted):
        model.zero_grad()
        loss, _ = workload.compute_loss(model, batch)
        loss.backward()
        found.append(
            (loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
        )

    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
