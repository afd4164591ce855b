"""Every lever survives every hop, from the command line to the PDF; made of the table itself."""

import json
from dataclasses import fields, replace

import click
import pytest
import torch
from levers import other_value
from matplotlib.text import Text
from train_toy import Toy, toy_options

from memplan.advise import Question, plan_one
from memplan.advise.batch_plan import free_of, plan_for_card
from memplan.answers import PlanAnswer, load_answers, save_answers
from memplan.cli import cli
from memplan.cli.common import given_levers
from memplan.cli.train import request_from
from memplan.present.plan import plan_sections
from memplan.report.alternatives import alternatives_figure, chosen_index
from memplan.spec import LEVER, LEVERS, Levers, Split, StepSpec, spec_of
from memplan.tape import load_tape
from memplan.trace.record import record
from memplan.training.options import options_from_record
from memplan.training.setup import follow_plan, prepare


class Levered(Toy):
    """The toy with all that a workload may offer, so that no lever is refused."""

    assigner_parts = 1

    def make_lean(self, model):
        """Note that it was done."""
        model.is_lean = True

    def take_recipe(self, tensor):
        """Return none: no block of the toy hangs any on its result."""

    def give_recipe(self, tensor, recipe):
        """Do nothing, for the same reason."""


PREDICTED = [one for one in LEVERS if one.is_predicted]
EVERY = StepSpec(**{one.name: other_value(one) for one in PREDICTED})
"""No lever of a plan as it is without being asked."""


def _parsed(command, words):
    return cli.get_command(click.Context(cli), command).make_context(command, list(words))


def _request(words):
    context = _parsed("train", words)
    return request_from(context, context.params)


@pytest.fixture(name="plan", scope="module")
def _plan():
    question = Question(workload=Levered(), gpus=("t4",), spec=EVERY)
    return plan_one(question, effective_batch_size=2, free=())


@pytest.fixture(name="read_back", scope="module")
def _read_back(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_answers(path, [plan], force=False)
    (answer,) = load_answers(path)
    return answer


def test_table_keywords_and_fields_name_the_same_levers():
    """A lever without its option, or a keyword without its lever, would not arrive."""
    names = [field.name for field in fields(StepSpec)]

    assert set(names) == set(LEVER) == set(Levers.__annotations__)


@pytest.mark.parametrize("lever", LEVERS, ids=str)
def test_the_plain_value_is_another_one(lever):
    """The value that the other tests send through is none that would be there anyway."""
    assert lever.plain != other_value(lever)
    assert lever.words(other_value(lever))


@pytest.mark.parametrize(
    ("lever", "command"),
    [(one, command) for one in LEVERS for command in sorted(one.commands)],
    ids=str,
)
def test_an_option_of_a_command_arrives_in_the_spec(lever, command):
    """By every spelling of the option, and the line to copy says the same again."""
    value = other_value(lever)
    context = _parsed(command, lever.typed(value))
    spec = spec_of(context.params)

    assert {lever.name} == given_levers(context).keys()
    assert replace(StepSpec(), **{lever.name: value}) == spec
    assert spec == spec_of(_parsed(command, spec.options(command)).params)
    if lever.negative:
        assert lever.plain == getattr(
            spec_of(_parsed(command, [lever.negative]).params), lever.name
        )


def test_a_lever_without_an_option_stands_in_the_environment_of_a_command_to_copy(plan):
    """What `memplan train` has no option for is set before it."""
    lines = [
        f"{one.variable}={other_value(one)}"
        for one in LEVERS
        if one.variable and "train" not in one.commands
    ]

    assert lines
    assert all(line in plan.command for line in lines)


def test_a_tape_keeps_every_lever(tmp_path):
    """In its header, written and read back."""
    tape = record(Levered(), 1, EVERY)
    tape.save(tmp_path / "toy.tape")

    assert EVERY == tape.description.spec == load_tape(tmp_path / "toy.tape").description.spec


@pytest.mark.parametrize("lever", PREDICTED, ids=str)
def test_a_plan_keeps_a_lever_to_its_file_and_back(lever, plan, read_back):
    """In Python, in JSON at the level of the plan, of its workload and of each alternative."""
    value = other_value(lever)
    values = json.loads(json.dumps(plan.to_json()))
    written = list(value) if isinstance(value, tuple) else value

    assert value == getattr(plan.spec, lever.name) == getattr(read_back.spec, lever.name)
    assert read_back == plan
    for record_of in (values, values["workload"], *values["alternatives"]):
        assert written == record_of[lever.name]


@pytest.mark.parametrize("lever", PREDICTED, ids=str)
def test_text_and_pages_say_a_lever(lever, plan):
    """In the words of the table, in the plan as text and on its page."""
    words = lever.words(other_value(lever))
    page = " ".join(text.get_text() for text in alternatives_figure(plan).findobj(Text))

    assert words in "\n".join(section.text for section in plan_sections(plan))
    assert words in page


@pytest.mark.parametrize("lever", LEVERS, ids=str)
def test_two_settings_that_differ_in_one_lever_are_told_apart(lever, plan):
    """The page marks the very setting that was chosen."""
    alike = plan.alternatives[-1]
    other = replace(alike, spec=replace(alike.spec, **{lever.name: lever.plain}))

    assert 0 == chosen_index(plan, [alike])
    if other.spec != alike.spec:
        assert 1 == chosen_index(plan, [other, alike])


@pytest.mark.parametrize("lever", LEVERS, ids=str)
def test_options_of_a_run_keep_a_lever_in_its_records(lever, tmp_path):
    """As `args.yaml` and checkpoints have them."""
    options = toy_options(tmp_path, **{lever.name: other_value(lever)})

    assert options == options_from_record(json.loads(json.dumps(options.as_record())))


@pytest.mark.parametrize("lever", PREDICTED, ids=str)
def test_the_step_that_runs_is_as_its_options_say(lever, tmp_path):
    """Without a plan; what a CPU does not have is taken off."""
    value = other_value(lever)
    setup = prepare(Levered(), toy_options(tmp_path, **{lever.name: value}))

    assert value == getattr(setup.step.spec, lever.name)
    assert setup.spec is setup.step.spec
    assert setup.workload.assigner_parts == setup.spec.assigner_parts


def test_the_step_that_runs_is_the_one_that_was_predicted(plan, tmp_path):
    """One object from the plan to the step: no lever is copied on the way."""
    setup = prepare(Levered(), toy_options(tmp_path), plan=plan)

    assert setup.step.spec is plan.spec
    assert setup.step.model.is_lean
    assert isinstance(setup.step.optimizer, torch.optim.Adam)
    assert setup.step.optimizer.defaults["fused"]


def test_auto_batch_hands_all_that_was_given_to_the_plan(tmp_path):
    """`train --auto-batch` plans for what is typed beside it, and trains with it."""
    levers = [one for one in PREDICTED if "train" in one.commands]
    words = [word for one in levers for word in one.typed(other_value(one))]
    words += ["--auto-batch", "--gpu", "t4", "--effective-batch", "1", "--compile"]
    request = _request([*words, "--data", str(tmp_path / "data.yaml")])
    workload = Levered()
    options = replace(request.options("toy"), image_size=8)
    made = plan_for_card(request, workload, workload.open_data(options), options, 0, 1)

    for one in levers:
        assert other_value(one) == getattr(made.spec, one.name)
    # What a plan does not know stays as it was typed.
    assert replace(made.spec, compiled=True) == follow_plan(options, made, workload).spec


@pytest.mark.parametrize("lever", [one for one in LEVERS if one.negative], ids=str)
def test_a_lever_that_was_refused_is_none_of_a_plan_s_choices(lever, tmp_path):
    """`--no-lean` never trains lean."""
    words = ["--auto-batch", lever.negative, "--data", str(tmp_path / "data.yaml")]
    request = _request(words)
    options = request.options("toy")

    assert lever.name not in free_of(request, options)
    assert lever.plain == getattr(options.spec, lever.name)


def test_a_split_is_written_with_the_images_of_a_step(plan):
    """Also where unequal cards share it; the sum is not read back."""
    split = Split(micro_batch_size=2, accumulation_steps=3, devices=2, others_batch_size=5)
    uneven = replace(plan, split=split)
    values = uneven.to_json()

    assert 21 == split.effective_batch_size == values["effective_batch_size"]
    assert (2, 3, 2) == tuple(
        values[name] for name in ("micro_batch_size", "accumulation_steps", "devices")
    )
    assert uneven == PlanAnswer.from_json(json.loads(json.dumps(values)))
