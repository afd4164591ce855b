"""What is asked beside a plan, on a model small enough that the whole answer can be checked."""

import dataclasses

import pytest
from trace_toy import Counted

import memplan
from memplan.advise import Question
from memplan.advise.compare_cards import card_choice, read_prices
from memplan.advise.crowding import Crowds
from memplan.advise.headroom import edge_of
from memplan.advise.planned import Planned, replayed_with_rate
from memplan.advise.planning import plan_one, recordings_of
from memplan.advise.question import silent
from memplan.advise.second_card import second_card
from memplan.errors import UsageError
from memplan.spec import FREE, StepSpec


def _planned(capacity_bytes=None, effective_batch_size=16, **changes):
    """Return a plan of the counted network, ready to be asked."""
    question = Question(
        workload=Counted(validates=True),
        gpus=("rtx-3090",),
        capacity_bytes=capacity_bytes,
        spec=StepSpec(precision="fp32"),
        **changes,
    )
    recordings = recordings_of(question)
    free = FREE - {"recompute"}
    answer = plan_one(
        question, effective_batch_size=effective_batch_size, free=free, recordings=recordings
    )
    return Planned(
        question=question,
        answer=answer,
        recordings=recordings,
        asked_batch_size=effective_batch_size,
        crowds=Crowds.of(question, None, None),
        safety_fraction=None,
        free=free,
        say=silent,
    )


def test_edge_is_what_a_replay_of_those_sizes_says():
    """One image more takes what its own recording takes, and headrooms differ by the margin."""
    planned = _planned()
    edge = edge_of(planned)
    chosen = planned.chosen
    tape = planned.recordings.tape(planned.spec, chosen.split.micro_batch_size + 1)
    peaks, _ = replayed_with_rate(planned, planned.simulator, tape, chosen.split)

    assert chosen.split.micro_batch_size + 1 == edge.next_micro_batch_size
    assert peaks.device_used_peak_bytes == edge.next_peak_bytes
    margin = edge.card_headroom_bytes - edge.headroom_bytes
    assert planned.answer.gpu.capacity_bytes - planned.answer.budget_bytes == margin
    assert 2 * chosen.split.micro_batch_size == edge.validation_batch_size


def test_cards_are_those_of_plans_made_for_each():
    """The fastest card's figures are those of a plan for it; the value follows the prices."""
    planned = _planned()
    prices = read_prices(["h200=30000", "t4=1"])
    choice = card_choice(planned, prices)
    fastest = next(one for one in choice.cards if one.name == choice.fastest)
    own = memplan.plan(
        Counted(validates=True), gpu=choice.fastest, effective_batch=16, precision="fp32"
    )

    assert 1 < len(choice.cards)
    assert "t4" == choice.best_value
    assert own.predicted.images_per_second == pytest.approx(fastest.images_per_second, rel=0.01)
    assert own.split == fastest.split
    rates = [one.images_per_second for one in choice.cards]
    assert sorted(rates, reverse=True) == rates


@pytest.mark.parametrize("text", ["t4", "t4=x", "=3", "t4=-1", "t4=0", "t4=nan", "t4=inf"])
def test_prices_that_are_none_are_refused(text):
    """With the text as it was given."""
    with pytest.raises(UsageError, match=text.replace("=", ".")):
        read_prices([text])


def test_second_card_shares_the_images():
    """Two cards take the images of one, and buckets are the gradients' bytes."""
    planned = _planned(effective_batch_size=64)
    two = second_card(planned, 640)
    parameters = sum(one.numel() for one in Counted().build_model().parameters())

    assert 64 == two.split.effective_batch_size
    assert 4 * parameters == two.bucket_bytes
    assert two.other_rank_peak_bytes <= two.first_rank_peak_bytes
    rate = planned.chosen.predicted.images_per_second
    assert two.images_per_second / rate == pytest.approx(two.ratio)


def test_images_that_two_cannot_share_are_refused():
    """An odd number of images a step, or two cards already."""
    planned = _planned(effective_batch_size=7)

    with pytest.raises(UsageError, match="7 images a step"):
        second_card(planned, None)
    two = dataclasses.replace(planned.question, devices=2)
    with pytest.raises(UsageError, match="--devices is 2"):
        second_card(dataclasses.replace(planned, question=two), None)
