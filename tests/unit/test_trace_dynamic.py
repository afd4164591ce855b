"""Sizes that depend on values: computed where values follow from the batch, else as stated."""

import numpy as np
import pytest
import torch
from trace_toy import Counted

from memplan import tape as tapes
from memplan.errors import BadInputError
from memplan.spec import StepSpec
from memplan.trace.record import record
from memplan.trace.values import MAX_ELEMENTS

BATCH = 3
# Image index and one number of each object: five, two and one to an image.
OBJECTS = [0, 0, 0, 0, 0, 1, 1, 2]


class _Objects(Counted):
    """A step with targets of known values and a loss given by each test."""

    states_sizes = True
    objects_per_image = 2
    positives_per_object = 4

    def __init__(self, loss):
        super().__init__()
        self._loss = loss
        self.seen = []
        self.choices = []
        self.questions = []

    def make_batch(self, micro_batch_size):
        """Return images and targets `[n, 2]`."""
        targets = torch.tensor([[image, 0.5] for image in OBJECTS])
        return {**super().make_batch(micro_batch_size), "targets": targets}

    def compute_loss(self, model, batch):
        """Return the test's loss."""
        loss = self._loss(self, model(batch["images"]), batch["targets"])
        return loss, loss.detach()[None]

    def num_chosen(self, choice):
        """Remember what was asked."""
        self.choices.append(choice)
        return super().num_chosen(choice)

    def answer(self, question):
        """Remember what was asked."""
        self.questions.append(question)
        return super().answer(question)


def _record(loss):
    workload = _Objects(loss)
    return workload, record(workload, BATCH, StepSpec(precision="fp32"))


def _allocated(tape, category="activation"):
    events = tape.events
    rows = (events.kind == tapes.ALLOCATE) & (
        tape.block_category[events.block] == tapes.CATEGORY_INDEX[category]
    )
    return events.requested_bytes[rows].tolist()


def test_counts_of_real_targets_are_exact():
    """`unique`, `max`, masks and slices over the batch's targets see the batch's values."""

    def loss(self, outputs, targets):
        index = targets[:, 0]
        values, counts = index.unique(return_counts=True)
        padded = torch.zeros(BATCH, counts.max(), 1, device=targets.device)
        for image in range(BATCH):
            matches = index == image
            number = matches.sum()
            if number:
                padded[image, :number] = targets[matches, 1:]
        self.seen += [
            tuple(values.shape),
            tuple(padded.shape),
            float(padded.sum()),
            [int(number) for number in counts],
            tuple((padded > 0).nonzero().shape),
        ]
        return outputs.square().sum() * padded.sum()

    workload, _ = _record(loss)

    assert [(3,), (3, 5, 1), 4.0, [5, 2, 1], (8, 3)] == workload.seen
    assert [] == workload.choices
    assert [] == workload.questions


def test_masks_over_predictions_select_what_is_stated():
    """Two objects of four positives in each of three images: 24 rows, and their gradients."""

    def loss(self, outputs, _):
        mask = outputs.sigmoid() > 0.9
        chosen = torch.masked_select(outputs, mask)
        rows = outputs[mask]
        where = mask.nonzero()
        self.seen += [tuple(chosen.shape), tuple(rows.shape), tuple(where.shape)]
        return chosen.sum() + rows.square().sum()

    workload, tape = _record(loss)

    assert [(24,), (24,), (24, 2)] == workload.seen
    assert {"aten.masked_select", "aten.nonzero"} == {c.operator for c in workload.choices}
    assert {("aten.gt", (3, 10), BATCH, "micro_batch", "")} == {
        (c.made_by, c.shape, c.micro_batch_size, c.section, c.module) for c in workload.choices
    }
    # The rows are kept for the gradient of the square.
    assert 24 * 4 in _allocated(tape)
    assert not {name for name in tape.description.unknown_operators if "nonzero" in name}


def test_every_value_and_gradient_is_freed():
    """What a dynamic operator allocates goes again, and each parameter has its gradient."""

    def loss(__, outputs, _):
        return outputs[outputs > 0].square().sum()

    _, tape = _record(loss)
    _, plain = _record(lambda _, outputs, __: outputs.square().sum())

    assert sorted(_allocated(plain, "gradient")) == sorted(_allocated(tape, "gradient"))
    temporary = tape.block_category == tapes.CATEGORY_INDEX["temporary"]
    kinds = [
        np.sort(tape.events.block[(tape.events.kind == kind) & temporary[tape.events.block]])
        for kind in (tapes.ALLOCATE, tapes.FREE)
    ]
    assert np.array_equal(*kinds)


def test_the_host_is_answered():
    """A question about predictions is put to the workload, with what made the value."""

    def loss(self, outputs, _):
        if outputs.max() > 1 and (outputs > 2).sum():
            self.seen.append("positive")
        return outputs.sum()

    workload, _ = _record(loss)

    assert ["positive"] == workload.seen
    assert [(bool, "aten.gt"), (int, "aten.sum")] == [
        (question.type, question.made_by) for question in workload.questions
    ]


def test_known_values_are_told():
    """What the host asks of targets is their value, however many views and writes lie between."""

    def loss(self, outputs, targets):
        halves = targets[:, 1].clone().view(2, 4)
        halves[1] += 2
        halves.t()[0, 0] = 7
        self.seen += [float(halves.sum()), float(targets.sum()), (halves[0] > 1).sum().item()]
        return outputs.sum()

    workload, _ = _record(loss)

    assert [7 + 3 * 0.5 + 4 * 2.5, 4 + 8 * 0.5, 1] == workload.seen
    assert [] == workload.questions


def test_constants_made_like_predictions_are_known():
    """Zeros and ones have values whatever tensor lends its shape, and so has what they fill."""

    def loss(self, outputs, targets):
        ones = torch.ones_like(outputs)
        filled = torch.empty_like(outputs).fill_(2)
        written = torch.empty(len(targets), device=targets.device).copy_(targets[:, 1])
        self.seen += [float(outputs.new_zeros(4).sum()), float(ones.sum()), float(filled.sum())]
        self.seen += [float(written.sum())]
        return outputs.sum()

    workload, _ = _record(loss)

    assert [0.0, 30.0, 60.0, 4.0] == workload.seen
    assert [] == workload.questions


def test_writing_predictions_makes_values_unknown():
    """Targets into which a prediction was written are asked for, not read."""

    def loss(__, outputs, targets):
        targets = targets.clone()
        targets[0, 1] = outputs[0, 0].detach()
        float(targets.sum())
        float(targets.clone().zero_().sum())
        return outputs.sum()

    workload, _ = _record(loss)

    assert ["aten.sum"] == [question.made_by for question in workload.questions][:1]


def test_large_tensors_are_not_followed():
    """Above the limit a value counts as unknown."""

    def loss(self, outputs, _):
        small = torch.ones(MAX_ELEMENTS, device=outputs.device)
        large = torch.ones(MAX_ELEMENTS + 1, device=outputs.device)
        self.seen += [float(small.sum()), float(large.sum())]
        return outputs.sum()

    workload, _ = _record(loss)

    assert [float(MAX_ELEMENTS), 1.0] == workload.seen
    assert 1 == len(workload.questions)


def test_what_is_not_stated_is_refused_by_name():
    """Without objects there is no number of positives; the operator and the way out are named."""

    def loss(__, outputs, _):
        return outputs[(outputs > 0)].sum()

    workload = _Objects(loss)
    workload.objects_per_image = 0

    with pytest.raises(BadInputError, match=r"nonzero on values of shape \[3, 10\].*num_chosen"):
        record(workload, BATCH)


def test_an_answer_that_is_not_stated_is_refused_by_name():
    """A workload may decline to answer."""

    class Silent(_Objects):
        def answer(self, question):
            del question

    def loss(__, outputs, _):
        return outputs.sum() * float(outputs.max())

    with pytest.raises(BadInputError, match=r"value made by aten\.max.*answer method of counted"):
        record(Silent(loss), BATCH)


def test_images_may_be_taken_one_by_one():
    """A mask over one image keeps that image's positives; more dimensions are kept whole."""

    def loss(self, outputs, _):
        one = outputs[0] > 0
        wide = (outputs > 0).unsqueeze(-1).repeat(1, 1, 4)
        self.seen += [tuple(outputs[0][one].shape), tuple(wide.nonzero().shape)]
        return outputs.sum()

    workload, _ = _record(loss)

    assert [(8,), (96, 3)] == workload.seen


def test_nms_is_known_for_known_boxes_and_stated_otherwise():
    """Boxes of the batch are suppressed for real; predicted ones as the workload says."""
    torchvision = pytest.importorskip("torchvision")

    def loss(self, outputs, targets):
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [9, 9, 12, 12]]).to(targets.device)
        kept = torchvision.ops.nms(boxes, boxes[:, 3], 0.5)
        unknown = torchvision.ops.nms(boxes + outputs[0, 0], outputs[:, 0], 0.5)
        self.seen += [tuple(kept.shape), tuple(unknown.shape)]
        return outputs.sum()

    workload, _ = _record(loss)

    assert [(2,), (3,)] == workload.seen
    assert ["torchvision.nms"] == [choice.operator for choice in workload.choices]


def test_an_unknown_mask_asks_for_positions_and_their_scratch():
    """`nonzero` allocates a count, with scratch of its own, then the positions."""
    _, tape = _record(lambda _, outputs, __: outputs.sum() + (outputs > 0).nonzero().sum())
    names = np.array(tape.operator_names)[tape.operators.name]
    row = int(np.flatnonzero(names == "aten.nonzero.default")[0])
    events = tape.events
    mine = (events.operator == row) & (events.kind == tapes.ALLOCATE)

    assert [4, 24 * 2 * 8] == events.requested_bytes[mine].tolist()[:3:2]
    assert 4 == mine.sum()


def test_following_values_changes_nothing_else():
    """A step without such sizes has the same tape, stated or not."""
    plain = record(Counted(), BATCH)
    followed_workload = Counted()
    followed_workload.states_sizes = True
    followed = record(followed_workload, BATCH)

    for column in ("kind", "block", "requested_bytes", "asks", "about", "section"):
        assert np.array_equal(getattr(plain.events, column), getattr(followed.events, column))
