"""Recordings that memplan adds may fail; those that were asked for may not."""

import pickle
import resource

import cloudpickle
import numpy as np
import pytest
from growth_toy import Growing

from memplan.cli.common import Progress
from memplan.device import catalogue
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import BadInputError, MemplanError
from memplan.fit import attempts
from memplan.fit.attempts import Attempts, Failed, attempted
from memplan.fit.predictor import Predictor
from memplan.host_memory import available_host_bytes, within_host_memory
from memplan.trace.record import record


def _limited(batch):
    """Record a step of no more than 300 images."""
    return record(Growing(width=8, runs_to=300), batch)


def test_a_failure_of_what_was_not_asked_for_is_kept_with_its_reason():
    """The batches that run are there, the others say why not, and are not tried again."""
    made = Attempts(_limited, {16}, lambda _: None)

    assert [16, 300] == sorted(made.many([16, 300, 301]))
    assert [301] == [*made.failures]
    assert made.failures[301].endswith("px: no more than 300 images")


def test_a_failure_of_what_was_asked_for_is_raised():
    """Its line says what the workload said."""
    with pytest.raises(BadInputError, match="no more than 300 images"):
        Attempts(_limited, {16, 400}, lambda _: None).many([16, 400])


def test_recordings_travel_to_other_processes_without_the_terminal():
    """Whoever is told of recordings stays behind: batches were replayed on one core for it."""
    made = Attempts(_limited, {4}, Progress())
    made.many([4])

    assert [4] == [*pickle.loads(cloudpickle.dumps(made)).tapes]


@pytest.mark.parametrize("error", [KeyError("x"), OSError("no file"), MemoryError()])
def test_whatever_a_recorder_raises_is_a_failure(error):
    """Any error of a workload or of the machine, not only those that recording knows."""

    def record_it(_):
        raise error

    made = attempted(record_it, [5], ())[5]

    assert isinstance(made, Failed)
    assert isinstance(made.error, MemplanError)


def test_steps_of_very_many_operators_are_not_recorded_unasked(monkeypatch):
    """A loop over images makes operators with each; a batch that would take minutes is refused."""
    monkeypatch.setattr(attempts, "_MOST_OPERATORS", 500)
    made = Attempts(lambda batch: record(Growing(width=8, chunk=1), batch), {4}, lambda _: None)
    made.many([4, 8])
    made.many([200, 12])

    assert [4, 8, 12] == sorted(made.tapes)
    assert "operators" in made.failures[200]


def test_recordings_made_unasked_come_to_an_end(monkeypatch):
    """All of them together run no more than so many operators."""
    monkeypatch.setattr(attempts, "_MOST_OPERATORS_IN_ALL", 400)
    made = Attempts(lambda batch: record(Growing(width=8), batch), {1}, lambda _: None)
    for batch in range(1, 40):
        made.many([batch])

    assert {*range(1, 40)} == {*made.tapes, *made.failures}
    assert len(made.tapes) < 20


def test_work_within_host_memory_fails_where_there_is_none():
    """Asking for more than there is raises, and afterwards the process is as free as before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with within_host_memory(1), pytest.raises(MemoryError):
        np.ones(available_host_bytes() // 8, dtype=np.float64)

    assert before == resource.getrlimit(resource.RLIMIT_AS)


def test_a_lone_batch_that_runs_is_answered_alone():
    """Where no other batch runs, that one is the answer, and what was not checked is known."""

    def only(batch):
        if batch != 7:
            raise BadInputError(f"{batch} is not 7.")
        return record(Growing(width=8), batch)

    predictor = Predictor(only, [Simulator(catalogue.card("rtx-3090"))], Life(), 7, 7)
    found = predictor.largest_batch(0)

    assert (7, False, True) == (found.batch, found.is_edge, predictor.is_lone)
    assert predictor.peaks(0, 7).fits
