"""Errors carry their message, their exit code, and both survive a process boundary."""

import pickle

import pytest

from memplan import errors

KINDS = {
    errors.MemplanError: 1,
    errors.BadInputError: 1,
    errors.UsageError: 2,
    errors.BadTapeError: 1,
    errors.ProcessError: 1,
    errors.InfeasibleError: 3,
}


@pytest.mark.parametrize(("kind", "exit_code"), KINDS.items())
def test_each_kind_has_its_exit_code(kind, exit_code):
    """0 is done, 1 failed, 2 wrong usage, 3 no feasible plan."""
    assert exit_code == kind("text").exit_code


def test_every_error_is_a_memplan_error():
    """One `except` catches whatever is meant for the user."""
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]

    assert all(issubclass(kind, errors.MemplanError) for kind in kinds)
    assert len(KINDS) + 2 == len(kinds)


def test_the_tree_at_the_top_of_the_file_names_every_error():
    """The drawing in the docstring is the tree of the code."""
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert name in errors.__doc__


def test_an_unknown_name_suggests_the_nearest():
    """A typo costs one glance, not a search."""
    error = errors.UnknownNameError("card", "RTX-309", ["rtx-3090", "t4"], "See memplan gpus.")

    assert "Unknown card 'RTX-309'. Did you mean 'rtx-3090'? See memplan gpus." == str(error)


def test_a_name_like_no_other_suggests_nothing():
    """A wrong guess is worse than none."""
    assert "Unknown card 'xyz'." == str(errors.UnknownNameError("card", "xyz", ["rtx-3090"]))


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("text"),
        errors.UnknownNameError("card", "a", ["aa"]),
        errors.DeviceOutOfMemoryError("CUDA out of memory.", 2048),
    ],
)
def test_an_error_survives_pickling(error):
    """What fails in a child process reaches the user as it was raised."""
    revived = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), vars(error)) == (type(revived), str(revived), vars(revived))
