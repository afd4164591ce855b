"""Workloads whose memory is no line in the batch, and such as do not run at every batch."""

import pytest
from cli_inside import runner
from growth_toy import Growing

from memplan.device import catalogue
from memplan.device.replay import replay
from memplan.spec import StepSpec
from memplan.trace.record import record

FP32 = ("--precision", "fp32")
CARD = catalogue.card("rtx-4090")


@pytest.fixture(name="memplan")
def _memplan(monkeypatch, capsys):
    """Return a function that runs memplan."""
    return runner(monkeypatch, capsys)


def _fits(workload, batch):
    return replay(record(workload, batch, StepSpec(precision="fp32")), CARD).fits


def test_a_contrastive_loss_has_one_largest_batch_whatever_is_asked(memplan):
    """A table of pairs grows with the square: each list of batches gives the same answer, recorded.

    Lines through the batches asked for would give 58,149, 38,314, 41,312, 72,411 and 103,608.
    """
    asked = ([16], ["1:64"], [4], [128, 512], [1000])
    answers = []
    for batches in asked:
        options = [word for batch in batches for word in ("--batch", batch)]
        finished = memplan(
            "probe", "--workload", "growth_toy:contrastive", *FP32, "--gpu", CARD.name, "--json",
            *options,
        )  # fmt: skip
        assert 0 == finished.code
        answers.append(finished.json)
    (largest,) = {answer["largest_batch"] for answer in answers}
    workload = Growing(pairs=8)

    assert (True, False) == (_fits(workload, largest), _fits(workload, largest + 1))
    for answer in answers:
        assert answer["largest_is_edge"]
        assert answer["fit"]["grows_faster"] > 1.5
        assert {largest, largest + 1} <= set(answer["fit"]["recorded_batches"])


def test_growth_faster_than_affine_is_said_and_the_line_names_its_batches(memplan):
    """In text: a note, and the batches at which the line was compared, which are all it claims."""
    finished = memplan(
        "probe", "--workload", "growth_toy:contrastive", *FP32, "--gpu", CARD.name, "--batch", 16
    )

    assert "Note: Memory grows faster than affine in the batch: at batch " in finished.out
    assert " at batch 16, 24, 32)." in finished.out


def test_a_step_that_fails_far_from_what_was_asked_does_not_decide(memplan):
    """No more than 300 images run: what was asked is answered, and what was not checked is said."""
    for batch in (16, 200, 300):
        options = ("--workload", "growth_toy:limited", "--gpu", CARD.name, "--batch", batch)
        finished = memplan("probe", *options)
        answer = memplan("probe", *options, "--json").json

        assert "the largest micro-batch that was checked and fits rtx-4090" in finished.out
        assert "batch 301 could not be checked" in finished.out
        assert "no more than 300 images" in finished.out
        assert (300, False) == (answer["largest_batch"], answer["largest_is_edge"])
        assert "no more than 300 images" in answer["unchecked"][0]
        assert batch == answer["batches"][0]["micro_batch_size"]
        assert answer["batches"][0]["fits"]


def test_a_batch_that_was_asked_for_and_fails_is_an_error(memplan):
    """Of what the user asked for a failure is one line."""
    finished = memplan(
        "probe", "--workload", "growth_toy:limited", "--gpu", CARD.name, "--batch", 301
    )

    assert (1, "") == (finished.code, finished.out)
    assert 1 == len(finished.err.splitlines())
    assert "no more than 300 images" in finished.err


def test_a_plan_leaves_out_batches_that_cannot_be_recorded(memplan):
    """With 512 images a step the largest that run at once are 256, and the text says why."""
    options = ("--workload", "growth_toy:limited", "--gpu", CARD.name, "--effective-batch", 512)
    finished = memplan("plan", *options)
    answer = memplan("plan", *options, "--json").json

    assert 0 == finished.code
    assert 256 == answer["micro_batch_size"]
    assert 512 == answer["effective_batch_size"]
    assert "could not be recorded" in answer["unchecked"][0]
    assert answer["unchecked"][0] in finished.out


def test_a_plan_of_squares_fits_when_recorded(memplan):
    """65,536 images a step do not fit at once though a line through smaller batches says so."""
    answer = memplan(
        "plan", "--workload", "growth_toy:contrastive", *FP32, "--gpu", CARD.name,
        "--effective-batch", 65_536, "--json",
    ).json  # fmt: skip
    batch = answer["micro_batch_size"]

    assert batch < 65_536
    assert _fits(Growing(pairs=8), batch)
    assert any("faster than affine" in note for note in answer["notes"])
