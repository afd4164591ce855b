"""The backward walk gives what PyTorch's engine gives, bit for bit."""

import copy
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from trace_toy import Counted

from memplan import tape as tapes
from memplan.spec import StepSpec
from memplan.trace.engine import BackwardWalk, SavedTensors
from memplan.trace.record import record


class Cube(torch.autograd.Function):
    """x cubed, with a second argument that has no gradient."""

    @staticmethod
    def forward(ctx, x, scale):
        """Return scale * x ** 3."""
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x**3

    @staticmethod
    def backward(ctx, gradient):
        """Return the gradient for x alone."""
        (x,) = ctx.saved_tensors
        return gradient * ctx.scale * 3 * x**2, None


class Net(torch.nn.Module):
    """Convolutions with what autograd finds hard in between."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.shared = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.scale = torch.nn.Parameter(torch.ones(8, 1, 1))
        self.unused = torch.nn.Linear(2, 2)
        self.last = torch.nn.Linear(16, 4)

    def trunk(self, x):
        """Return features: shared weights, in-place ops, split and cat, broadcasting."""
        x = functional.silu(self.norm(self.first(x)), inplace=True)
        x = self.shared(x) + self.shared(functional.relu_(x * self.scale))
        a, b, ignored = x.split([4, 2, 2], 1)
        del ignored
        return torch.cat([b.sigmoid(), a, a.chunk(2, 1)[0] + b], 1)

    def forward(self, x):
        """Return class scores."""
        x = self.trunk(x)
        x = Cube.apply(x, 0.5)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.last(pooled)


class Checkpointed(Net):
    """The same, with the trunk run again in backward."""

    def trunk(self, x):
        """Return the trunk's features without keeping what is inside."""
        return checkpoint(super().trunk, x, use_reentrant=False)


def _ignore(*_):
    pass


def _walk(loss_of):
    saved = SavedTensors(_ignore)
    walk = BackwardWalk(saved, _ignore, _ignore)
    with saved.hooks():
        loss = loss_of()
    walk(loss)
    return saved


def _images():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def _gradients(net):
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def _assert_equal(expected, actual):
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert actual[name] is None, name
        else:
            assert gradient.dtype == actual[name].dtype
            assert gradient.stride() == actual[name].stride(), name
            assert torch.equal(gradient, actual[name]), name


@pytest.mark.parametrize("kind", [Net, Checkpointed])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_equal_the_engines_bit_for_bit(kind, dtype, passes):
    """Shared and unused parameters, in-place ops, custom functions, autocast, accumulation."""
    torch.manual_seed(1)
    theirs = kind()
    ours = copy.deepcopy(theirs)

    def loss_of(net):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return net(_images()).float().square().sum()

    for _ in range(passes):
        loss_of(theirs).backward()
        _walk(lambda: loss_of(ours))

    _assert_equal(_gradients(theirs), _gradients(ours))
    _assert_equal(dict(theirs.named_buffers()), dict(ours.named_buffers()))


def test_an_output_nobody_uses_has_no_gradient():
    """Only one of two outputs of an operator reaches the loss; the other counts as zero."""
    values = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    twin = values.detach().clone().requires_grad_()

    def loss_of(leaf):
        return leaf.sort(1).values[:, :2].sum()

    _walk(partial(loss_of, values))
    loss_of(twin).backward()

    assert torch.equal(twin.grad, values.grad)


def test_a_broadcast_gradient_is_reduced_to_its_leaf():
    """A leaf that was broadcast gets the sum over what it was broadcast to."""
    leaf = torch.ones(1, 3, requires_grad=True)

    def loss():
        return (leaf * torch.arange(6.0).view(2, 3)).sum()

    _walk(loss)

    assert [[3.0, 5.0, 7.0]] == leaf.grad.tolist()


def test_saved_tensors_are_gone_after_the_walk():
    """Nothing that forward saved outlives backward."""
    net = Net()

    saved = _walk(lambda: net(_images()).sum())

    assert 0 == len(saved)


def test_saved_tensors_go_node_by_node():
    """When a node has run, what it unpacked is dropped, long before the end of backward."""
    saved = SavedTensors(_ignore)
    counts = []
    walk = BackwardWalk(saved, lambda *_: counts.append(len(saved)), _ignore)
    x = torch.ones(3, requires_grad=True)
    with saved.hooks():
        loss = x.exp().exp().exp().sum()

    walk(loss)

    # Before sum, three exp each kept their result; each drops its own.
    assert [3, 3, 2, 1] == counts


def test_a_part_of_the_graph_that_nothing_leads_to_lets_go_at_once():
    """What it saved goes with its result, as on a device, and not at the end of backward."""
    saved = SavedTensors(_ignore)
    x = torch.ones(3, requires_grad=True)
    with saved.hooks():
        unused = x.exp()
        held = len(saved)
        del unused

    assert [1, 0] == [held, len(saved)]


def test_a_section_that_is_run_again_holds_its_input_until_its_last_node():
    """The input is let go after both exponentials inside, and not after the first."""
    saved = SavedTensors(_ignore)
    x = torch.ones(3, requires_grad=True)
    with saved.hooks():
        given = x * 2
        address = weakref.ref(given.untyped_storage())
        loss = checkpoint(lambda y: (y + 1).exp().exp(), given, use_reentrant=False).sum()
        del given
    alive = {}
    walk = BackwardWalk(saved, lambda _, name: alive.update({name: address() is not None}), _ignore)

    walk(loss)

    assert alive["ExpBackward0"]
    assert not alive["MulBackward0"]


def test_a_gradient_in_another_layout_is_copied_for_its_leaf():
    """AccumulateGrad copies what is not laid out as the leaf, and says so."""
    told = []
    saved = SavedTensors(_ignore)
    walk = BackwardWalk(saved, _ignore, lambda _, copied: told.append(copied))
    leaf = torch.ones(2, 3, requires_grad=True)
    with saved.hooks():
        loss = (leaf.t() * torch.arange(6.0).view(3, 2)).sum()

    walk(loss)

    assert [True] == told
    assert leaf.stride() == leaf.grad.stride()


def test_the_gradient_that_backward_begins_with_lives_until_it_returns():
    """PyTorch's `backward` holds it, so it goes after every node has run."""
    tape = record(Counted(), 2, StepSpec(precision="fp32"))
    operators, events = tape.operators, tape.events
    names = [tape.operator_names[name] for name in operators.name]
    begins = names.index("aten.ones_like.default")
    block = events.block[(events.operator == begins) & (events.kind == tapes.ALLOCATE)][0]
    freed = events.operator[(events.block == block) & (events.kind == tapes.FREE)][0]
    section = operators.section == operators.section[begins]
    backward = section & (operators.phase == tapes.PHASES.index("backward"))

    assert np.flatnonzero(backward)[-1] == freed
