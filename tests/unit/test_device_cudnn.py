"""The workspace oracle: cuDNN's own answers, for cards that are not there.

The figures are of cuDNN 9.19; under another version only the relations between them are checked.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import phantom_calls
import pytest

from memplan.convolution import ConvolutionProblem
from memplan.device import cudnn, cudnn_asking, cudnn_plans
from memplan.device.catalogue import card
from memplan.device.cudnn import BENCHMARK_LIMIT, WorkspaceOracle
from memplan.device.cudnn_descriptors import CudnnError
from memplan.device.cudnn_plans import Note
from memplan.errors import BadInputError, MemplanError
from memplan.phantom.child import PhantomChild

only_9_19 = pytest.mark.skipif(
    not cudnn.installed_version().startswith("9.19."), reason="figures are of cuDNN 9.19"
)


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setenv("MEMPLAN_CACHE", "off")


def problem(**changes):
    """Return a 3x3 convolution of 64 to 64 channels on 16 x 160 x 160, changed as asked."""
    usual = {
        "kind": "forward",
        "dtype": "float16",
        "input": (16, 64, 160, 160),
        "weight": (64, 64, 3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
    }
    return ConvolutionProblem(**(usual | changes))


@only_9_19
@pytest.mark.parametrize(
    ("name", "contiguous", "channels_last"),
    [
        ("h200", 104_931_475, 131),
        ("a100-40gb", 104_931_344, 0),
        ("rtx-3090", 104_931_344, 0),
    ],
)
def test_layout_change_is_what_a_contiguous_convolution_pays(name, contiguous, channels_last):
    """In NCHW the workspace holds input, output and weights again; in channels_last nothing."""
    tensors = 2 * (2 * 16 * 64 * 160 * 160 + 64 * 64 * 3 * 3)
    oracle = WorkspaceOracle(card(name))
    answers = oracle.bytes_many([problem(), problem(channels_last=True)])

    assert [contiguous, channels_last] == answers
    assert 0 <= contiguous - tensors < 1024


@only_9_19
def test_every_kind_and_precision_has_its_own_answer():
    """On an A100 forward, input gradient, weight gradient and TF32 off differ as cuDNN says."""
    oracle = WorkspaceOracle(card("a100-40gb"))
    kinds = [problem(kind=kind) for kind in ("forward", "input_gradient", "weight_gradient")]
    full = [problem(dtype="float32"), problem(dtype="float32", allow_tf32=False)]

    assert [104_931_344, 104_931_344, 110_175_043] == oracle.bytes_many(kinds)
    assert [105_005_072, 409_856] == oracle.bytes_many(full)


def test_settings_that_say_nothing_make_no_new_question():
    """TF32 matters to float32 only; a 1-d convolution is the 2-d one PyTorch makes of it."""
    flat = problem(input=(4, 8, 100), weight=(8, 8, 3), stride=(2,), padding=(1,), dilation=(1,))
    square = problem(
        input=(4, 8, 1, 100), weight=(8, 8, 1, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 1)
    )

    assert problem().key() == problem(allow_tf32=False).key()
    assert problem(dtype="float32").key() != problem(dtype="float32", allow_tf32=False).key()
    assert square.key() == flat.key()
    assert problem().key() != problem(deterministic=True).key()


def test_one_two_and_three_dimensions_are_answered():
    """Convolutions over one, two and three spatial dimensions have a workspace each."""
    oracle = WorkspaceOracle(card("rtx-3090"))
    problems = [
        problem(
            input=(2, 16, *(8,) * rank),
            weight=(16, 16, *(3,) * rank),
            stride=(1,) * rank,
            padding=(1,) * rank,
            dilation=(1,) * rank,
        )
        for rank in (1, 2, 3)
    ]

    assert all(num_bytes >= 0 for num_bytes in oracle.bytes_many(problems))


def test_a_problem_is_asked_once(monkeypatch):
    """Equal problems cost one question, now and later, and keep their places."""
    oracle = WorkspaceOracle(card("rtx-3090"))
    asked = []
    ask = cudnn_asking.workspaces

    def counted(device, problems, **more):
        """Note what is asked."""
        asked.extend(problems)
        return ask(device, problems, **more)

    monkeypatch.setattr(cudnn_asking, "workspaces", counted)
    small = problem(input=(1, 64, 8, 8))
    first = oracle.bytes_many([problem(), small, problem()])
    expected = len(asked)

    assert [problem(), small] == asked
    assert first[0] == first[2]
    assert first[1] == oracle.bytes(small)
    assert expected == len(asked)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"deterministic": True}, Note.NONDETERMINISTIC),
        ({"dtype": "float32", "allow_tf32": False}, Note.TENSOR_CORE),
    ],
)
def test_a_setting_rules_out_the_plans_with_its_note(changes, note):
    """Deterministic and TF32 off skip the plans that say so of themselves, and no others."""
    on = cudnn_plans.device(json.dumps(card("a100-40gb").cudnn_description()))
    bound = problem(kind="weight_gradient", **changes)
    usual = list(cudnn_asking._taken(replace(bound, deterministic=False, allow_tf32=True), on))
    expected = [plan for plan in usual if note not in plan.notes]
    actual = list(cudnn_asking._taken(bound, on))

    assert expected == actual
    assert 0 < len(actual) < len(usual)


def test_windows_of_one_pixel_take_no_copy_of_their_tensors_on_an_a100():
    """With a driver, cuDNN gives them to cuBLASLt; a public run of MobileNetV2 in TF32 shows it.

    Its 11,336 MiB at batch 128 leave no room for the copies that the other engines make, such as
    the 38,549,008 bytes of this one (github.com/itu-rad/CARMA, A100 40 GB). What cuBLASLt takes
    is at most the 4 MiB that it is allowed, with their alignment.
    """
    widening = problem(
        dtype="float32", input=(128, 24, 56, 56), weight=(144, 24, 1, 1), padding=(0, 0)
    )

    assert 4_194_560 == WorkspaceOracle(card("a100-40gb")).bytes(widening)


def test_an_engine_that_pytorch_distrusts_is_never_taken():
    """In 3-d, PyTorch skips engine 23 for input gradients; cuDNN alone would take it here."""
    solid = problem(
        kind="input_gradient",
        dtype="bfloat16",
        input=(7, 96, 16, 16, 16),
        weight=(32, 96, 3, 3, 3),
        stride=(1, 1, 1),
        padding=(1, 1, 1),
        dilation=(1, 1, 1),
    )
    oracle = WorkspaceOracle(card("a100-40gb"))
    device = cudnn_plans.device(json.dumps(card("a100-40gb").cudnn_description()))
    plans = list(cudnn_plans.plans(solid, device, cudnn_plans.Mode.INSTANT))
    trusted = [plan.workspace_bytes for plan in plans if plan.engine != 23]

    assert trusted[0] == oracle.bytes(solid)
    assert len(trusted) < len(plans)


def test_benchmark_mode_is_bounded_by_the_plans_it_times():
    """The choice without benchmark is among those timed, and the trial is the largest of all."""
    oracle = WorkspaceOracle(card("rtx-3090"))
    (answer,) = oracle.benchmark_many([problem()])

    assert answer.least_bytes <= oracle.bytes(problem()) <= answer.most_bytes <= answer.trial_bytes
    assert answer.least_bytes < answer.trial_bytes


def test_benchmark_mode_drops_what_cannot_be_had():
    """With less memory the trial is smaller, and no plan above it is timed."""
    oracle = WorkspaceOracle(card("rtx-3090"))
    (whole,) = oracle.benchmark_many([problem(kind="weight_gradient")])
    limit = whole.trial_bytes - 1
    (part,) = oracle.benchmark_many([problem(kind="weight_gradient")], limit)

    assert part.trial_bytes <= limit
    assert part.most_bytes <= min(limit, whole.most_bytes)
    with pytest.raises(BadInputError, match="no plan"):
        oracle.benchmark_many([problem(kind="weight_gradient")], -1)


def test_an_oracle_of_benchmark_mode_answers_with_the_upper_bound():
    """`bytes` under benchmark is the most that any of the plans timed would request."""
    oracle = WorkspaceOracle(card("rtx-3090"), benchmark=True)
    problems = [problem(), problem(kind="weight_gradient", channels_last=True)]
    expected = [answer.most_bytes for answer in oracle.benchmark_many(problems)]

    assert expected == oracle.bytes_many(problems)
    assert 10 == BENCHMARK_LIMIT


def test_capacity_does_not_change_an_answer():
    """The workspace depends on the kind of card, not on the memory it is taken to have."""
    whole = card("rtx-4090")
    part = whole.with_capacity(whole.capacity_bytes // 2)
    answers = {WorkspaceOracle(one).bytes(problem(kind="weight_gradient")) for one in (whole, part)}

    assert 1 == len(answers)


@pytest.mark.parametrize("name", ["p100", "v100-16gb", "v100-32gb"])
def test_a_card_cudnn_no_longer_knows_is_answered_with_a_note(monkeypatch, name):
    """Pascal and Volta get the answers of Turing under a CUDA 13 build, and the note says so."""
    monkeypatch.setattr(cudnn, "_is_installed", lambda wheel: wheel == "nvidia-cudnn-cu13")
    oracle = WorkspaceOracle(card(name))

    assert "does not support" in oracle.note
    assert "7.5" in oracle.note
    assert oracle.bytes(problem()) > 0


def test_a_supported_card_needs_no_note():
    """A card the installed cuDNN knows is asked about as it is."""
    oracle = WorkspaceOracle(card("t4"))

    assert "" == oracle.note
    assert f"cuDNN {cudnn.installed_version()} asked about NVIDIA T4" == oracle.source


def test_bfloat16_before_ampere_is_refused():
    """PyTorch has no bfloat16 convolution in cuDNN on a T4; the message names the way out."""
    with pytest.raises(BadInputError, match="--precision amp-fp16"):
        WorkspaceOracle(card("t4")).bytes(problem(dtype="bfloat16"))


def test_shapes_that_are_no_convolution_are_a_mistake_of_ours():
    """Channels that do not divide into groups, or ranks that differ, are caught at once."""
    with pytest.raises(AssertionError):
        problem(groups=2)
    with pytest.raises(AssertionError):
        problem(stride=(1,))


def test_output_shape_is_that_of_the_forward_convolution():
    """Stride, padding and dilation give the output as PyTorch counts it."""
    strided = problem(input=(2, 3, 640, 480), weight=(32, 3, 6, 6), stride=(2, 2), padding=(2, 2))

    assert (2, 32, 320, 240) == strided.output
    assert (16, 64, 156, 156) == problem(dilation=(3, 3)).output


def test_strides_are_those_of_packed_tensors():
    """Size-1 dimensions get the stride they would have if they were longer."""
    assert (24, 12, 4, 1) == cudnn_plans.packed_strides((5, 2, 3, 4), channels_last=False)
    assert (24, 1, 8, 2) == cudnn_plans.packed_strides((5, 2, 3, 4), channels_last=True)
    assert (7, 1, 7, 7) == cudnn_plans.packed_strides((3, 7, 1, 1), channels_last=True)
    assert (7, 1, 1, 1) == cudnn_plans.packed_strides((3, 7, 1, 1), channels_last=False)


def test_engines_that_do_not_load_are_an_error_and_not_another_plan():
    """With no room for cuDNN's libraries the answer was that of the engines that were left."""
    described, asked = card("rtx-3090"), problem(input=(4, 256, 4, 4), weight=(256, 256, 3, 3))
    arguments = {
        "device": json.dumps(described.cudnn_description()),
        "problems": [asdict(asked)],
        "every": False,
    }
    modules = (cudnn_asking.__name__, phantom_calls.__name__)
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    with PhantomChild(described, imports=modules, variables=variables) as child:
        with pytest.raises(MemplanError, match=r"a library of it does not load .*libcudnn"):
            child.call(phantom_calls.answer_within, {**arguments, "more_bytes": 200 << 20})
        ((found,),) = child.call(phantom_calls.answer_within, {**arguments, "more_bytes": 8 << 30})

    assert WorkspaceOracle(described).bytes(asked) == found


def test_plans_that_would_be_compiled_take_what_their_configuration_states():
    """They are not built, which takes 0.2 s each; built, they take the same bytes, as others do."""
    described, modules = card("rtx-3090"), (cudnn_asking.__name__, phantom_calls.__name__)
    asked = [
        problem(kind="weight_gradient"),
        problem(
            kind="weight_gradient",
            input=(3, 64, 20, 20),
            weight=(64, 16, 1, 1),
            padding=(0, 0),
            groups=4,
        ),
    ]
    arguments = {
        "device": json.dumps(described.cudnn_description()),
        "problems": [asdict(one) for one in asked],
    }
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    with PhantomChild(described, imports=modules, variables=variables) as child:
        found = child.call(phantom_calls.stated_and_built, arguments)

    assert [stated for _, stated, _ in found] == [built for *_, built in found]
    assert {True, False} == {is_compiled for is_compiled, *_ in found}
    assert max(built for *_, built in found) > 0


def test_a_child_that_died_is_asked_in_another():
    """An answer is had although the process that is asked was ended."""
    oracle = WorkspaceOracle(card("rtx-3090"))
    before = oracle.bytes(problem(input=(1, 64, 8, 8)))
    cudnn_asking._children[None]._process.kill()

    assert before == WorkspaceOracle(card("rtx-3090")).bytes(problem(input=(1, 64, 8, 8)))


def test_cudnn_s_own_failures_are_told_from_refusals():
    """What is not supported or badly asked is an answer; lack of memory and of a library is not."""
    failures = [
        status for status in (1008, 2000, 3000, 4001, 4003) if CudnnError(status).is_of_the_process
    ]

    assert [1008, 4001, 4003] == failures
