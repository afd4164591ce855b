"""`memplan train`: how options are read, what is refused, and the plan for host memory."""

import io

import pytest
import torch
from click.testing import CliRunner
from train_toy import NUM_IMAGES, Toy, ToyData, toy_options

from memplan.cli.train import command
from memplan.errors import BadInputError, InfeasibleError, UnknownNameError, UsageError
from memplan.host_memory import available_host_bytes
from memplan.planner.host import plan_for_host
from memplan.spec import LEVER, StepSpec
from memplan.trace.record import record
from memplan.training import ACCEPTED, REFUSED, TrainOptions, train
from memplan.training.command_line import GROUPS
from memplan.training.data_defaults import data_defaults
from memplan.units import GIB

OFFICIAL = tuple(
    """
    --weights --cfg --data --hyp --epochs --batch-size --batch --imgsz --img --img-size --resume
    --nosave --noval --noplots --cache --device --single-cls --optimizer --workers --project --name
    --exist-ok --cos-lr --flat-cos-lr --fixed-lr --label-smoothing --patience --freeze --save-period
    --seed --min-items --close-mosaic
""".split()  # noqa: SIM905 - read as a table
)


def _run(*arguments):
    """Return the error that a command line ends with."""
    result = CliRunner().invoke(command, arguments)
    assert result.exception is not None
    return result.exception


def test_every_official_option_is_known():
    """Each is offered in the help, or refused and hidden."""
    shown = CliRunner().invoke(command, ["--help"]).output
    known = {option for parameter in command.params for option in parameter.opts}

    assert set() == (set(OFFICIAL) | set(REFUSED) | set(ACCEPTED)) - known
    assert [] == [option for option in OFFICIAL if option not in shown]
    hidden = [parameter for parameter in command.params if getattr(parameter, "hidden", False)]
    assert {*REFUSED, *ACCEPTED} == {parameter.opts[0] for parameter in hidden}


def test_the_help_has_a_place_for_every_option():
    """The sections together name each visible option once."""
    visible = [p.name for p in command.params if not getattr(p, "hidden", False)]

    assert sorted(visible) == sorted(name for names in GROUPS.values() for name in names)


def test_the_help_opens_with_an_example():
    """The first indented line below the summary can be typed."""
    lines = CliRunner().invoke(command, ["--help"]).output.splitlines()

    assert "  memplan train --auto-batch --cfg yolov9-s --data data.yaml --epochs 100" == lines[4]


@pytest.mark.parametrize("option", REFUSED)
def test_a_refused_option_says_why(option):
    """It ends with exit code 2 and the reason, with a value or without."""
    error = _run(option)

    assert isinstance(error, UsageError)
    assert f"{option} is not offered: {REFUSED[option]}. Leave it out." == str(error)


def test_a_refused_option_may_say_what_is_done_anyway():
    """`--mask-ratio 4` of the official segmentation recipe is what masks have here."""
    assert "--mask-ratio" not in str(_run("--mask-ratio", "4"))


@pytest.mark.parametrize("option", ACCEPTED)
def test_an_option_that_changes_nothing_is_taken_and_said(option):
    """The reason is printed, and what is really missing is asked for."""
    takes_value = option in {"--local_rank", "--bucket", "--entity", "--bbox_interval",
                             "--artifact_alias"}  # fmt: skip

    result = CliRunner().invoke(command, [option, *(["1"] if takes_value else [])])

    assert f"{option} changes nothing: {ACCEPTED[option]}." in result.output
    assert "--data is missing" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "x.yaml"], "--cfg is missing"),
        (["--cfg", "a", "--workload", "b"], "Give one of them"),
        (["--auto-batch", "--plan", "p"], "Give one of them"),
        (["--auto-batch", "--batch", "4"], "--auto-batch chooses what --batch sets"),
        (["--batch", "-1", "--accumulate", "4"], "--auto-batch chooses what --accumulate sets"),
        (["--gpu", "t4"], "--gpu is for planning"),
        (["--safety", "0.1"], "--safety is for planning"),
        (["--objects-per-image", "3"], "--objects-per-image is for planning"),
        (["--plan", "p", "--precision", "fp32"], "--plan sets what --precision sets"),
        (["--recompute", "auto"], "Add --auto-batch"),
        (["--resume", "--epochs", "3"], "--epochs cannot be given with it"),
        (["--resume", "x", "--noplots", "--seed", "1"], "--seed cannot be given with it"),
        (["--freeze", "x"], "unexpected extra argument"),
        (["--freeze=x"], "--freeze x is no list of layers"),
        (["--cfg", "c", "--data", "d", "--cache", "tape"], "--cache tape is not offered"),
        (["--cfg", "c", "--data", "d", "--rect", "--image-weights"], "Give one of them"),
        (["--cfg", "c", "--data", "d", "--quad", "--batch", "6"], "no multiple of 4"),
        (["--quad", "--auto-batch"], "which plans do not know"),
        (["--quad", "--plan", "p"], "which plans do not know"),
        (["--cfg", "c", "--data", "d", "--precision", "fp8"], "--precision 'fp8' is not one of"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    """Options that would be ignored, or that set the same thing, end with exit code 2."""
    error = _run(*arguments)

    if isinstance(error, SystemExit):  # click's own errors, which it prints itself
        assert 2 == error.code
        return
    assert 2 == error.exit_code
    assert message in str(error)


def test_freeze_takes_several_numbers():
    """`--freeze 0 1 2` is read as one list; what follows is the next option's."""
    context = command.make_context("train", ["--freeze", "0", "1", "2", "--img", "64"])

    assert ((0, 1, 2), 64) == (context.params["freeze"], context.params["img"])
    assert (10,) == command.make_context("train", ["--freeze", "10"]).params["freeze"]
    assert (0,) == command.make_context("train", []).params["freeze"]


def test_defaults_are_the_official_ones():
    """Where the recipe has a default that makes sense here, it is the same."""
    values = command.make_context("train", []).params
    expected = {
        "epochs": 100, "batch": 16, "img": 640, "weights": "", "optimizer": "SGD", "workers": 8,
        "name": "exp", "patience": 100, "save_period": -1, "seed": 0, "close_mosaic": 0,
        "min_items": 0, "label_smoothing": 0.0, "cache": "", "device": "",
    }  # fmt: skip

    assert expected == {name: values[name] for name in expected}
    assert "ram" == command.make_context("train", ["--cache", "--nosave"]).params["cache"]


def test_a_data_set_may_recommend_settings(tmp_path):
    """Names are those of options, with either dash; a file beside the data is found."""
    path = tmp_path / "data.yaml"
    (tmp_path / "own.yaml").touch()
    path.write_text("train_defaults: {hyp: own.yaml, effective-batch: 4}")

    assert {"hyp": str(tmp_path / "own.yaml"), "effective_batch": 4} == data_defaults(path)
    path.write_text("train_defaults: {hyp: small-set.yaml}")
    assert {"hyp": "small-set.yaml"} == data_defaults(path)


@pytest.mark.parametrize("text", ["names: [a]", "", "[1]", "{", "train_defaults:"])
def test_a_data_set_that_recommends_nothing_is_silent(tmp_path, text):
    """A file that is no mapping is left to its own reader."""
    path = tmp_path / "data.yaml"
    path.write_text(text)

    assert {} == data_defaults(path)
    assert {} == data_defaults(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("train_defaults: {optimiser: SGD}", UnknownNameError, "Did you mean 'optimizer'"),
        ("train_defaults: {device: cpu}", UnknownNameError, "Unknown entry of train_defaults"),
        ("train_defaults: {effective_batch: four}", BadInputError, "give a whole number"),
        ("train_defaults: {effective_batch: true}", BadInputError, "give a whole number"),
        ("train_defaults: {hyp: 3}", BadInputError, "give text"),
        ("train_defaults: 3", BadInputError, "must be a mapping"),
    ],
)
def test_recommendations_that_cannot_be_used_are_refused(tmp_path, text, error, message):
    """The file is named, with the value."""
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message) as caught:
        data_defaults(path)

    assert str(path) in str(caught.value)


def test_what_may_be_recommended_are_options():
    """Each name is a field of the options, or a lever."""
    from memplan.training.data_defaults import KINDS

    assert set() == set(KINDS) - set(TrainOptions.__dataclass_fields__) - set(LEVER)


def _host_plan(available_bytes, spec=None, **settings):
    return plan_for_host(
        Toy(), spec or StepSpec(), record, available_bytes=available_bytes, **settings
    )


def test_plenty_of_host_memory_takes_the_whole_step_at_once():
    """The micro-batch is the effective batch, and the answer says what it is for."""
    plan = _host_plan(GIB, effective_batch=12, images=24)

    assert (12, 1, 12) == (
        plan.split.micro_batch_size,
        plan.split.accumulation_steps,
        plan.split.effective_batch_size,
    )
    assert ("cpu", GIB, "host memory") == (
        plan.gpu.name,
        plan.gpu.capacity_bytes,
        plan.gpu.source,
    )
    assert ("fp32", int(GIB * 0.8)) == (plan.spec.precision, plan.budget_bytes)
    assert plan.predicted.epoch_seconds == 24 / plan.predicted.images_per_second
    assert type(plan).from_json(plan.to_json()) == plan


def test_little_host_memory_takes_a_divisor_and_accumulates():
    """The largest divisor within four fifths of the memory is chosen."""
    whole = _host_plan(GIB, effective_batch=12).predicted.allocated_peak_bytes
    tight = _host_plan(int(whole / 0.8) - 2, effective_batch=12)

    assert 6 == tight.split.micro_batch_size
    assert 2 == tight.split.accumulation_steps
    assert tight.predicted.allocated_peak_bytes <= tight.budget_bytes
    assert 12 == _host_plan(int(whole / 0.8) + 2, effective_batch=12).split.micro_batch_size


def test_no_more_images_at_once_than_the_data_has():
    """With 5 images, 12 a step are gathered from micro-batches of 4."""
    assert 4 == _host_plan(GIB, effective_batch=12, images=5).split.micro_batch_size


def test_too_little_host_memory_is_infeasible():
    """The error says what one image needs and what there is."""
    with pytest.raises(InfeasibleError, match="for one image at once, but the budget is"):
        _host_plan(1000, effective_batch=4)


def test_the_predicted_peak_is_what_the_toy_holds():
    """Weights, average, momentum and activations of one image, in blocks of 512 bytes."""
    peak = _host_plan(GIB, effective_batch=1)
    parameters = sum(p.numel() for p in Toy().build_model().parameters())

    # Weights, their average, gradients and momentum are the least a step can hold.
    assert 4 * 4 * parameters <= peak.predicted.allocated_peak_bytes <= 40 * 512


def test_available_memory_is_some_and_not_more_than_the_machine_s():
    """It lies between nothing and all pages."""
    import os

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    assert 0 < available_host_bytes() <= total
    assert not torch.cuda.is_initialized()


class _LongData(ToyData):
    """The toy's images, eight times over."""

    num_training_images = 8 * NUM_IMAGES

    def training_batches(self, *, micro_batch_size, **_):
        """Yield the first images again and again."""
        for _ in range(8 * NUM_IMAGES // micro_batch_size):
            yield self._batch(torch.arange(micro_batch_size) % NUM_IMAGES)

    def num_batches(self, micro_batch_size):
        """Return the batches of an epoch."""
        return -(-8 * NUM_IMAGES // micro_batch_size)


class _Long(Toy):
    nominal_batch_size = 16

    def open_data(self, options):
        """Return the longer data."""
        return _LongData(options.seed)


@pytest.mark.parametrize(("effective", "warned"), [(None, True), (4, False)])
def test_few_steps_an_epoch_are_warned_of(tmp_path, effective, warned):
    """80 images at 16 a step are 5 steps; the warning names the batch that gives enough."""
    stream = io.StringIO()
    train(_Long(), toy_options(tmp_path, epochs=1, effective_batch=effective), stream=stream)
    warning = (
        "Warning: An epoch of 80 images is 5 steps of the optimizer, which learns slowly. "
        "Train for many --epochs, or give --effective-batch 4.\n"
    )

    assert warned == (warning in stream.getvalue())
    steps = 5 if warned else 20
    assert f"{steps} steps an epoch; records in" in stream.getvalue()
