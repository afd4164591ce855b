"""Workspace curves ask little and are exact where the library is a line."""

import numpy as np

from memplan.fit.workspace import WorkspaceCurve


class _Library:
    """Answers with given functions of the batch, and counts the questions."""

    def __init__(self, *functions):
        self.functions = functions
        self.questions = 0

    def __call__(self, indices, batch):
        """Return workspaces, bytes."""
        self.questions += len(indices)
        return np.array([self.functions[index](batch) for index in indices], dtype=np.int64)


def _line(batch):
    return 4096 + 1000 * batch


def _step(batch):
    return 0 if batch < 20 else 10**6 + 64 * batch


def test_a_line_takes_three_questions():
    """Both ends and the middle agree, so nothing more is asked."""
    library = _Library(_line)
    curve = WorkspaceCurve(library, 1, 1, 64)

    assert [_line(batch) for batch in (1, 7, 40, 64)] == [
        int(curve.at(b)[0]) for b in (1, 7, 40, 64)
    ]
    assert 3 == library.questions


def test_only_a_bent_convolution_is_asked_further():
    """Halving a range asks about those convolutions alone that are off the line."""
    library = _Library(_line, _step)
    curve = WorkspaceCurve(library, 2, 1, 64)

    assert 3 < library.questions <= 3 + 9
    assert _line(33) == int(curve.at(33)[0])
    assert [_step(1), _step(64)] == [int(curve.at(batch)[1]) for batch in (1, 64)]


def test_exactly_at_asks_the_library():
    """Where a decision hangs on it, the answer is the library's own."""
    library = _Library(_step)
    curve = WorkspaceCurve(library, 1, 1, 64)

    assert [_step(batch) for batch in (19, 20)] == [int(curve.exactly_at(b)[0]) for b in (19, 20)]


def test_what_was_asked_exactly_improves_what_is_between():
    """An exact answer becomes a point of the curve."""
    curve = WorkspaceCurve(_Library(_step), 1, 1, 64)
    curve.exactly_at(20)

    assert _step(20) == int(curve.at(20)[0])


def test_no_workspace_is_below_zero():
    """A falling line stops at nothing."""
    curve = WorkspaceCurve(_Library(lambda batch: max(0, 1000 - 10 * batch)), 1, 1, 90)

    assert 0 == int(curve.at(1000)[0])


def test_one_batch_is_one_question():
    """A range of one batch has nothing to interpolate."""
    library = _Library(_line)
    curve = WorkspaceCurve(library, 1, 8, 8)

    assert (_line(8), 1) == (int(curve.at(8)[0]), library.questions)


def test_no_convolutions_are_no_bytes():
    """A model without convolutions has an empty curve."""
    assert 0 == len(WorkspaceCurve(_Library(), 0, 1, 64).at(5))
