"""Tapes recorded at a few batches, fitted, equal tapes recorded at any other."""

import numpy as np
import pytest
from growth_toy import Growing
from memplan_models import torchvision as classifiers
from trace_toy import Counted

from memplan.fit.affine import EveryBatch, fit
from memplan.fit.align import same_structure
from memplan.spec import StepSpec
from memplan.trace.record import record


class _Recorder:
    """Records a workload at the batches asked for, and remembers which."""

    def __init__(self, workload, **settings):
        self.workload = workload
        self.settings = StepSpec(**settings)
        self.asked = []

    def __call__(self, batches):
        """Return tapes by batch."""
        self.asked += list(batches)
        return {batch: record(self.workload, batch, self.settings) for batch in batches}


def _assert_same_tape(expected, actual):
    assert same_structure(expected, actual)
    assert np.array_equal(expected.events.requested_bytes, actual.events.requested_bytes)
    assert expected.convolutions == actual.convolutions
    assert expected.description == actual.description
    assert expected.modules == actual.modules
    assert np.array_equal(expected.operators.flops, actual.operators.flops)
    assert np.array_equal(expected.operators.moved_bytes, actual.operators.moved_bytes)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels-last"])
@pytest.mark.parametrize("precision", ["amp-fp16", "fp32"])
def test_a_toy_fitted_equals_the_toy_recorded(memory_format, precision):
    """At batches that were never recorded the fit gives the very tape, byte for byte."""
    recorder = _Recorder(
        Counted(keeps_average=True, validates=True),
        memory_format=memory_format,
        precision=precision,
    )
    fitted = fit(recorder, 1, 40)

    for batch in (1, 3, 17, 39):
        expected = record(recorder.workload, batch, recorder.settings)
        _assert_same_tape(expected, fitted.tape(batch))
    assert 0 == fitted.max_residual_bytes
    assert len(recorder.asked) <= 5


@pytest.mark.parametrize("memory_format", ["contiguous", "channels-last"])
def test_a_residual_network_fitted_equals_it_recorded(memory_format):
    """The same for ResNet-18 at 64 pixels, with three recordings between 2 and 32."""
    workload = classifiers.FAMILY.make("resnet18", image_size=64)
    recorder = _Recorder(workload, memory_format=memory_format)
    fitted = fit(recorder, 2, 32)

    _assert_same_tape(record(workload, 11, recorder.settings), fitted.tape(11))
    assert 3 == len(recorder.asked)
    assert {} == fitted.residual_bytes


class _Pairs(Counted):
    """Compares every image with every other: memory grows with the square of the batch."""

    def compute_loss(self, model, batch):
        """Return the sum of squared differences between the outputs."""
        outputs = model(batch["images"])
        loss = (outputs[:, None] - outputs[None]).square().sum()
        return loss, loss.detach()[None]


class _Changes(Counted):
    """From five images on, four more scalars are made."""

    def compute_loss(self, model, batch):
        """Return the sum of squares of the outputs, times something if there are many."""
        loss = model(batch["images"]).square().sum()
        if len(batch["images"]) >= 5:
            loss = loss.exp().log()
        return loss, loss.detach()[None]


def test_a_structure_that_changes_splits_the_fit_there():
    """Each stretch keeps its structure, without gaps, and is exact inside."""
    recorder = _Recorder(_Changes(), precision="fp32")
    fitted = fit(recorder, 2, 20)

    assert [(2, 4), (5, 20)] == [(piece.first_batch, piece.last_batch) for piece in fitted.pieces]
    for batch in (3, 4, 5, 9, 20):
        expected = record(recorder.workload, batch, recorder.settings)
        _assert_same_tape(expected, fitted.tape(batch))
    assert 0 == fitted.max_residual_bytes


class _Alternates(Counted):
    """With an odd number of images, four more scalars are made."""

    def compute_loss(self, model, batch):
        """Return the sum of squares of the outputs, times something if they are odd."""
        loss = model(batch["images"]).square().sum()
        if len(batch["images"]) % 2:
            loss = loss.exp().log()
        return loss, loss.detach()[None]


@pytest.mark.parametrize("ends", [(1, 16), (2, 16), (3, 20), (4, 7)])
def test_a_structure_that_alternates_is_found(ends):
    """Odd and even batches get stretches of their own, and both are exact."""
    recorder = _Recorder(_Alternates(), precision="fp32")
    fitted = fit(recorder, *ends)

    for batch in range(ends[0], ends[1] + 4):
        expected = record(recorder.workload, batch, recorder.settings)
        _assert_same_tape(expected, fitted.tape(batch))
    assert 0 == fitted.max_residual_bytes
    assert len(recorder.asked) <= 6


class _Halves(Counted):
    """Keeps the larger half of the outputs."""

    def compute_loss(self, model, batch):
        """Return the sum of squares of half the outputs, rounded up."""
        outputs = model(batch["images"])
        loss = outputs[: (len(outputs) + 1) // 2].clone().square().sum()
        return loss, loss.detach()[None]


def test_bytes_that_alternate_are_reported():
    """Half the batch, rounded up, is a line for even batches only; the check is at an odd one."""
    fitted = fit(_Recorder(_Halves(), precision="fp32"), 2, 20)

    assert 0 < fitted.max_residual_bytes <= 10 * 4
    assert "aten.clone.default" in fitted.residual_bytes


def test_odd_and_even_batches_are_both_recorded():
    """Three recordings tell a range, and not all of them are even or odd."""
    for ends in ((2, 32), (3, 33), (2, 5), (2, 4)):
        recorder = _Recorder(Counted())
        fit(recorder, *ends)

        assert 3 == len(recorder.asked)
        assert {0, 1} == {batch % 2 for batch in recorder.asked}


def test_bytes_that_are_no_line_are_reported():
    """The fit says which operators are off a line, and by how many bytes where it was checked."""
    recorder = _Recorder(_Pairs(), precision="fp32")
    fitted = fit(recorder, 6, 21)
    checked = 11
    line = 36 + (441 - 36) * (checked - 6) // 15

    assert (6, 11, 21) == fitted.recorded_batches
    assert (line - checked**2) * 10 * 4 == fitted.max_residual_bytes
    assert "aten.sub.Tensor" in fitted.residual_bytes


def test_a_single_batch_is_its_own_fit():
    """A range of one batch records once and returns that tape."""
    recorder = _Recorder(Counted())
    fitted = fit(recorder, 4, 4)

    assert [4] == recorder.asked
    _assert_same_tape(record(recorder.workload, 4), fitted.tape(4))


def test_two_batches_are_recorded_and_nothing_between():
    """A range of two batches needs no third."""
    recorder = _Recorder(Counted())
    fitted = fit(recorder, 3, 4)

    assert (3, 4) == fitted.recorded_batches
    for batch in (3, 4):
        _assert_same_tape(record(recorder.workload, batch), fitted.tape(batch))


def test_beyond_the_range_the_last_stretch_goes_on():
    """Extrapolation follows the last line."""
    recorder = _Recorder(Counted())
    fitted = fit(recorder, 2, 10)

    _assert_same_tape(record(recorder.workload, 30), fitted.tape(30))


class _Looping(Counted):
    """The toy with a loss that loops over the images."""

    def compute_loss(self, model, batch):
        """Return the sum of each image's squares, an image at a time."""
        loss = sum(image.square().sum() for image in model(batch["images"]))
        return loss, loss.detach()[None]


def test_a_step_whose_operators_differ_at_every_batch_is_recorded_at_each():
    """A loop over the images makes more operators with each image; nothing can be fitted then."""
    recorder = _Recorder(_Looping(), precision="fp32")
    fitted = fit(recorder, 4, 16)
    before = len(recorder.asked)

    assert isinstance(fitted, EveryBatch)
    _assert_same_tape(record(recorder.workload, 7, recorder.settings), fitted.tape(7))
    assert [7] == recorder.asked[before:]
    fitted.prepare([7, 9])
    assert [7, 9] == recorder.asked[before:]
    assert {7, 9} <= set(fitted.recorded_batches)
    assert [*fitted.recorded_batches] == [piece.first_batch for piece in fitted.pieces]


def test_where_the_structure_changes_hundreds_of_times_few_batches_are_recorded():
    """A loop over parts of the batch changes it with each; two answers were asked for."""
    recorder = _Recorder(Growing(width=16, chunk=4), precision="fp32")
    fitted = fit(recorder, 1, 800)
    before = len(recorder.asked)

    assert before <= 70
    assert isinstance(fitted, EveryBatch)
    _assert_same_tape(record(recorder.workload, 801, recorder.settings), fitted.tape(801))
    assert [801] == recorder.asked[before:]


def test_a_recording_on_the_line_makes_the_stretch_reach_further():
    """It confirms what the fit says, event by event, and adds nothing but its batch."""
    recorder = _Recorder(Counted())
    fitted = fit(recorder, 2, 10)
    learned = fitted.learned(recorder([31])[31])

    assert [(2, 31)] == [(piece.first_batch, piece.last_batch) for piece in learned.pieces]
    assert (*fitted.recorded_batches, 31) == learned.recorded_batches
    assert {} == learned.residual_bytes
    _assert_same_tape(fitted.tape(50), learned.tape(50))


@pytest.mark.parametrize("batches", [[9], [100], [100, 9], [9, 100, 101], [4]])
def test_a_recording_off_the_line_bends_it_there(batches):
    """Squares: within the fit, beyond it or below, each recording is given back as it is."""
    recorder = _Recorder(_Pairs(), precision="fp32")
    fitted = fit(recorder, 6, 21)
    tapes = recorder(batches)
    for tape in tapes.values():
        fitted = fitted.learned(tape)

    for batch, tape in {**tapes, **recorder([6, 21])}.items():
        _assert_same_tape(tape, fitted.tape(batch))
    assert {6, 21, *batches} <= set(fitted.recorded_batches)
    assert "aten.sub.Tensor" in fitted.residual_bytes


@pytest.mark.parametrize("batch", [10, 11, 40])
def test_a_recording_of_other_operators_stands_by_itself(batch):
    """Where the structure is another one, that batch is given back, and its neighbours stay."""
    recorder = _Recorder(Counted(), precision="fp32")
    fitted = fit(recorder, 2, 20)
    other = record(_Changes(), batch, recorder.settings)
    learned = fitted.learned(other)

    _assert_same_tape(other, learned.tape(batch))
    for near in (2, 9, 12, 20):
        _assert_same_tape(fitted.tape(near), learned.tape(near))


def test_a_line_between_neighbours_is_not_drawn_out():
    """Beyond the end it goes on as over the wide stretch before, not as between two neighbours."""
    recorder = _Recorder(_Pairs(), precision="fp32")
    fitted = fit(recorder, 6, 21)
    for batch in (101, 100):
        fitted = fitted.learned(recorder([batch])[batch])

    assert (21, 100) == (fitted.piece(200).first_batch, fitted.piece(200).last_batch)


def test_batches_that_cannot_be_recorded_are_passed_over():
    """The middle of a range may fail: the fit is made of the others."""
    recorder = _Recorder(_Changes(), precision="fp32")

    def without_some(batches):
        return recorder([batch for batch in batches if batch in (2, 20)])

    fitted = fit(without_some, 2, 20)

    assert (2, 20) == fitted.recorded_batches
    for batch in (2, 20):
        _assert_same_tape(record(_Changes(), batch, recorder.settings), fitted.tape(batch))
