"""What the command line asks beside a plan, `memplan.plan(also=...)` asks too."""

import pytest
from trace_toy import Counted

import memplan
from memplan.advise.also import Also, check_alone, check_also
from memplan.advise.plans import PlanRequest, prepared
from memplan.advise.question import Question
from memplan.errors import InfeasibleError, UsageError
from memplan.spec import StepSpec

COMMAND = (
    "train_dual.py --batch 2 --img 64 --cfg yolov9-t --device 0,1 --single-cls --optimizer Adam"
)


def test_python_asks_beside_a_plan():
    """The second card and the headroom are in the answer; what was not asked is not."""
    answer = memplan.plan(
        Counted(validates=True),
        gpu="rtx-3090",
        effective_batch=16,
        precision="fp32",
        recompute=(),
        also=(memplan.Headroom(), memplan.SecondCard()),
    )

    assert answer.second_card.split.effective_batch_size == 16
    assert answer.edge.next_micro_batch_size == answer.split.micro_batch_size + 1
    assert answer.cards is None
    assert not answer.largest_image


def test_a_command_says_what_its_plan_is_about():
    """Workload, image size, classes, devices, optimizer and images a step are the command's."""
    request = prepared(
        PlanRequest(
            question=Question(gpus=("t4",), spec=StepSpec(allocator="expandable_segments:True")),
            also=(memplan.CommandCheck(COMMAND),),
        )
    )
    question = request.question

    assert ("yolov9-t", 2) == (question.workload, question.devices)
    assert {"image_size": 64, "num_classes": 1} == question.arguments
    assert StepSpec(optimizer="Adam", allocator="expandable_segments:True") == question.spec
    assert 64 == request.effective_batch_size == request.command.split.effective_batch_size


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"workload": "yolov9-s"}, "--workload"),
        ({"img": 320}, "--img"),
        ({"devices": 2}, "--devices"),
        ({"lean": False}, "--lean"),
        ({"spec": StepSpec()}, "spec"),
        ({"data": "data.yaml"}, "--data"),
    ],
)
def test_python_refuses_what_a_command_says_itself(given, option):
    """As `memplan plan --fit` does: one of the two would be ignored."""
    with pytest.raises(UsageError, match=f"^{option} stands beside --fit"):
        memplan.plan(gpu="t4", also=(memplan.CommandCheck(COMMAND),), **given)


def test_several_cards_give_a_list_with_those_that_hold_no_plan():
    """A card that is too small is an answer among others."""
    large, small = memplan.plan(
        Counted(), gpu=["rtx-3090", "t4"], effective_batch=2, precision="fp32", free=()
    )
    none, _ = memplan.plan(
        Counted(), gpu=["t4", "rtx-3090"], effective_batch=2, capacity="1MiB", free=()
    )

    assert (True, True, False) == (large.feasible, small.feasible, none.feasible)
    with pytest.raises(InfeasibleError):
        memplan.plan(Counted(), gpu="t4", effective_batch=2, capacity="1MiB", free=())


def test_as_many_cards_as_devices_share_a_batch():
    """Which cards train together is decided below the command line."""
    fast, slow = memplan.plan(
        Counted(), gpu=["rtx-3090", "t4"], devices=2, effective_batch=8, precision="fp32", free=()
    )

    assert 8 == fast.split.effective_batch_size == slow.split.effective_batch_size
    assert 1.0 == pytest.approx(fast.share_fraction + slow.share_fraction)
    with pytest.raises(UsageError, match=r"^--second-card is not offered for unequal cards"):
        check_alone((memplan.Headroom(), memplan.SecondCard()))


@pytest.mark.parametrize(
    ("also", "changes", "reason"),
    [
        (memplan.CompareCards(), {"gpus": ("t4", "h200")}, "Give one --gpu"),
        (memplan.SecondCard(), {"devices": 2}, "Leave it out"),
        (memplan.MaxImageSize(), {}, "takes no 'image_size'"),
    ],
)
def test_questions_without_an_answer_are_refused_before_a_plan(also, changes, reason):
    """One line, whoever asks."""
    question = Question(workload=Counted(), **changes)

    with pytest.raises(UsageError, match=reason):
        check_also(question, (also,), None)


def test_every_question_is_one_that_python_has():
    """The package names all that may stand in `also`."""
    assert {one.__name__ for one in Also.__args__} <= set(memplan.__all__)
