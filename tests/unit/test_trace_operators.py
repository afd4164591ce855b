"""What operators ask of the allocator beyond their outputs."""

from dataclasses import replace

import pytest
import torch
from trace_toy import Counted

from memplan import tape as tapes
from memplan.launches.launch import Processors
from memplan.spec import StepSpec
from memplan.trace import operators
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.operators import MatrixWorkspace, Output, Release, Temporary, Workspace
from memplan.trace.record import record

aten = torch.ops.aten


A100 = Processors(
    multiprocessors=108,
    threads_per_multiprocessor=2048,
    shared_memory_per_block_bytes=166912,
    compute_capability=(8, 0),
)


def asked_by(overload, *args):
    """Return what an operator asks for on these arguments."""
    outputs = overload(*args)
    outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    return on_an_a100(operators.requests(overload, args, outputs))


def on_an_a100(requests):
    """Return requests with the buffers of launches as large as an A100 wants them.

    Those of no bytes are left out, and so are they where temporaries are released.
    """
    answered, held = [], []
    for request in requests:
        if isinstance(request, operators.Scratch):
            which = request.launch.BUFFERS.index(request.buffer)
            num_bytes = request.launch.scratch_bytes(A100)[which]
            answered += [operators.Temporary(num_bytes)] * bool(num_bytes)
            held.append(bool(num_bytes))
        elif isinstance(request, operators.Release):
            end = len(held) - request.keep
            count = sum(held[end - request.count : end])
            answered += [replace(request, count=count)] * bool(count)
            del held[end - request.count : end]
        else:
            answered.append(request)
            held += [True] * isinstance(request, operators.Temporary)
    return answered


def _image(*shape, layout=torch.contiguous_format):
    return torch.empty(shape, device=DEVICE, dtype=torch.float16).to(memory_format=layout)


def _convolve(image, weight, groups=1):
    return asked_by(
        aten.convolution.default, image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], groups
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_asks_for_output_then_workspace(layout):
    """Input and weight in one layout need no copy; the workspace's problem has that layout."""
    with fake_cuda():
        output, workspace = _convolve(
            _image(2, 4, 8, 8, layout=layout), _image(6, 4, 3, 3, layout=layout)
        )

    assert Output(0) == output
    assert "forward" == workspace.convolution.kind
    assert (layout is torch.channels_last) == workspace.convolution.channels_last
    assert ((2, 4, 8, 8), (6, 4, 3, 3)) == (
        workspace.convolution.input,
        workspace.convolution.weight,
    )


def test_a_convolution_copies_a_weight_in_another_layout():
    """A contiguous weight meets a channels-last image: the copy goes before a bias's gradient."""
    with fake_cuda():
        asked = _convolve(_image(2, 4, 8, 8, layout=torch.channels_last), _image(6, 4, 3, 3))

    assert [Output, Temporary, Workspace] == [type(request) for request in asked]
    assert 6 * 4 * 9 * 2 == asked[1].num_bytes


def test_a_convolution_copies_an_input_that_has_holes():
    """A slice of a larger image is made contiguous before the output is allocated."""
    with fake_cuda():
        asked = _convolve(_image(2, 8, 8, 8)[:, :4], _image(6, 4, 3, 3))

    assert [Temporary, Output, Workspace] == [type(request) for request in asked]
    assert 2 * 4 * 64 * 2 == asked[0].num_bytes


def test_a_convolution_backward_asks_for_each_gradient_it_computes():
    """The gradient of an input that needs none is neither allocated nor given workspace."""
    with fake_cuda():
        arguments = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]]
        asked = asked_by(
            aten.convolution_backward.default,
            _image(2, 6, 8, 8),
            _image(2, 4, 8, 8),
            _image(6, 4, 3, 3),
            None,
            *arguments,
        )

    assert [Output, Workspace] == [type(request) for request in asked]
    assert "weight_gradient" == asked[1].convolution.kind


def test_each_gradient_of_a_convolution_copies_a_gradient_with_holes():
    """Output first, then the copy for the input's; copy first, then output for the weight's."""
    with fake_cuda():
        arguments = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]]
        asked = asked_by(
            aten.convolution_backward.default,
            _image(2, 10, 8, 8)[:, 2:8],
            _image(2, 4, 8, 8),
            _image(6, 4, 3, 3),
            [6],
            *arguments,
        )
    copy = Temporary(2 * 6 * 64 * 2)

    assert [Output(0), copy, "input_gradient", Release(1)] == _told(asked[:4])
    assert [copy, Output(1), "weight_gradient", Release(1), Output(2)] == _told(asked[4:9])


def test_a_gradient_of_another_layout_is_copied_once():
    """The copy serves both gradients and lives until the operator ends."""
    with fake_cuda():
        arguments = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]]
        asked = asked_by(
            aten.convolution_backward.default,
            _image(2, 6, 8, 8, layout=torch.channels_last),
            _image(2, 4, 8, 8),
            _image(6, 4, 3, 3),
            None,
            *arguments,
        )
    expected = [
        *(Temporary(2 * 6 * 64 * 2), Output(0), "input_gradient"),
        *(Output(1), "weight_gradient", Release(1)),
    ]

    assert expected == _told(asked)


def _told(asked):
    """Return requests with workspaces as the kind of their convolution."""
    return [one.convolution.kind if isinstance(one, Workspace) else one for one in asked]


def test_a_transposed_convolution_is_the_gradient_of_a_plain_one():
    """Its problem is mirrored: the input of the plain one is its output."""
    with fake_cuda():
        asked = asked_by(
            aten.convolution.default,
            _image(2, 4, 8, 8),
            _image(4, 6, 2, 2),
            *(None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1),
        )
    problem = asked[-1].convolution

    assert ("input_gradient", (2, 6, 16, 16)) == (problem.kind, problem.input)
    assert (2, 4, 8, 8) == problem.output


def test_a_matrix_product_asks_for_the_librarys_workspace():
    """After its output; the recorder grants it once a thread."""
    with fake_cuda():
        a = torch.empty(4, 4, device=DEVICE)

        assert [Output(0), MatrixWorkspace()] == asked_by(aten.mm.default, a, a)


def test_the_matrix_workspace_is_kept_from_a_threads_first_product():
    """Forward runs in one thread and backward in another, so a life holds two."""
    events = record(Counted(), 2, StepSpec(precision="fp32")).events
    matrix = events.asks == tapes.MATRIX_WORKSPACE
    blocks = set(events.block[matrix].tolist())
    freed = set(events.block[events.kind == tapes.FREE].tolist())

    assert 2 == matrix.sum() == len(blocks)
    assert set() == blocks & freed


@pytest.mark.parametrize("overload", [aten.add.Tensor, aten.abs_.default, aten.view.default])
def test_pointwise_operators_and_views_are_understood(overload):
    """They allocate what they return, or nothing."""
    assert operators.is_understood(overload)


def test_an_operator_without_a_rule_is_counted_by_name():
    """A histogram wants scratch that no rule tells, and the tape says so."""
    assert not operators.is_understood(aten.histc.default)

    class Counts(Counted):
        """Adds a histogram of its outputs to the loss."""

        def compute_loss(self, model, batch):
            """Return the sum of squares."""
            loss = model(batch["images"]).square().sum()
            return loss, torch.histc(loss.detach())

    unknown = record(Counts(), 2).description.unknown_operators

    assert {"aten.histc.default": 1} == unknown


@pytest.mark.parametrize("precision", ["fp32", "amp-fp16", "amp-bf16"])
def test_the_toy_has_nothing_that_is_not_understood(precision):
    """Every operator of a plain classifier has a rule or a reason to need none."""
    tape = record(Counted(keeps_average=True), 2, StepSpec(precision=precision))

    assert {} == tape.description.unknown_operators


def test_an_operator_in_place_asks_for_no_output():
    """It has none of its own, so its rule speaks of temporaries alone."""
    with fake_cuda():
        tensor = torch.empty(4, 4, device=DEVICE)
        asked = list(operators.requests(aten.scatter_add_.default, [tensor, 0, tensor, tensor], []))

    assert [] == asked


def test_arguments_by_name_reach_a_rule():
    """A sort's dimension may be given by name alone."""
    with fake_cuda():
        rows = torch.empty(5000, 2, device=DEVICE)
        results = aten.sort.stable(rows, stable=True, dim=0)
        named = {"stable": True, "dim": 0}
        short = list(operators.requests(aten.sort.stable, [rows], results))
        long = list(operators.requests(aten.sort.stable, [rows], results, named))

    assert [Output(0), Output(1), Temporary(16)] == short
    assert 3 < len(long)


@pytest.mark.parametrize(
    ("node", "overload", "expected"),
    [
        ("IndexBackward0", aten.index_put.default, True),
        ("MaxBackward0", aten.scatter.src, True),
        ("GatherBackward0", aten.scatter_add.default, True),
        ("BinaryCrossEntropyWithLogitsBackward0", aten.sub.Tensor, True),
        ("SigmoidBackward0", aten.mul.Tensor, False),
        ("IndexPutBackward0", aten.index_put.default, False),
    ],
)
def test_backward_formulas_write_in_place_on_a_device(node, overload, expected):
    """Where they are watched they make something new; which ones is known by the node."""
    assert expected == operators.in_place_on_device(node, overload)
