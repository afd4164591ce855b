"""Workspace curves ask little and are exact where the library is a line."""

import numpy as np

from memplan.fit.workspace import WorkspaceCurve, anchors


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


def test_the_ends_and_powers_of_two_are_asked():
    """Most batches are powers of two, and there the answers are the library's own."""
    assert [3, 4, 8, 16, 20] == anchors(3, 20)
    assert [1, 2, 4] == anchors(1, 4)


def test_a_line_is_exact_between_the_batches_asked_about():
    """Seven questions answer for a line at any of 64 batches."""
    library = _Library(_line)
    curve = WorkspaceCurve(library, 1, 1, 64)

    assert [_line(batch) for batch in range(1, 65)] == [int(curve.at(b)[0]) for b in range(1, 65)]
    assert 7 == library.questions


def test_convolutions_can_be_asked_in_shares():
    """Two curves over half the convolutions each make up the curve over both."""
    library = _Library(_line, _step)
    halves = [
        WorkspaceCurve(library, 2, 1, 64, indices=np.array([index])).known for index in (0, 1)
    ]
    curve = WorkspaceCurve(library, 2, 1, 64, known={})
    for half in halves:
        curve.learn(half)

    assert [_line(32), _step(32)] == curve.at(32).tolist()


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
