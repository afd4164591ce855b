"""A loss of somebody else's trainer, whose backward pass is made again in pieces."""

import copy
import gc
import weakref

import pytest
import torch

from memplan.errors import DeviceOutOfMemoryError, MemplanError
from memplan.trainers.deferred import deferred
from memplan.trainers.passes import Passes


class Net(torch.nn.Module):
    """Dropout, batch norm, a counter and a list: all that a pass changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)
        self.drop, self.last = torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        self.samples, self.seen = 0, []
        self.sums = torch.zeros(())

    def forward(self, x):
        """Count what is seen."""
        self.samples += len(x)
        self.seen.append(len(x))
        self.sums += x.detach().sum()
        return self.last(self.drop(self.norm(self.first(x))))


class _NoRoom(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(_ctx, _gradient):
        raise RuntimeError("CUDA error: out of memory")


def _run(net, most=99, where="forward"):
    def run(batch):
        x, y = batch
        loss = torch.nn.functional.mse_loss(net(x), y)
        if len(x) > most and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return (_NoRoom.apply(loss) if len(x) > most else loss), None

    return run


def _batch(count=7):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, generator=generator), torch.randn(count, 1, generator=generator)]


def _state(net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state |= {f"{name}.grad": one.grad for name, one in net.named_parameters()}
    return state | {"random": torch.get_rng_state(), "sums": net.sums}, net.samples, net.seen


def _assert_equal(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert one[1:] == other[1:]


def _steps(passes, run, net):
    """Run two batches into one gradient, as accumulation does."""
    torch.manual_seed(5)
    for _ in range(2):
        loss, _ = deferred(passes, run, _batch())
        (loss * 3.0).backward()
    return _state(net)


def test_a_loss_that_finds_room_is_the_plain_one_bit_for_bit():
    """Gradients, statistics and random numbers are those without a guard."""
    plain = Net()
    guarded = copy.deepcopy(plain)
    torch.manual_seed(5)
    for _ in range(2):
        (_run(plain)(_batch())[0] * 3.0).backward()

    _assert_equal(_state(plain), _steps(Passes(guarded), _run(guarded), guarded))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_retry_is_the_run_in_pieces_bit_for_bit(where):
    """Wherever memory runs out, all is as if the batch had been split from the beginning."""
    split = Net()
    hit = copy.deepcopy(split)
    small = Passes(split, retry_after=9)
    small.pieces.held = 2
    passes = Passes(hit, retry_after=9)

    expected = _steps(small, _run(split), split)

    _assert_equal(expected, _steps(passes, _run(hit, 4, where), hit))
    assert [(0, 1)] == [(event.step, event.num_pieces) for event in passes.pieces.events]


def test_numbers_drawn_between_forward_and_backward_are_not_drawn_again():
    """A hook that draws, between the passes of a loss in pieces, does not see its numbers again."""
    net = Net()
    loss, _ = deferred(Passes(net), _run(net, 4), _batch())
    drawn = torch.rand(1)
    loss.backward()

    assert drawn != torch.rand(1)


def test_pieces_are_computed_again_under_the_forward_pass_autocast():
    """The backward pass is outside the autocast context, its forward passes are not."""
    net = torch.nn.Linear(3, 1)
    dtypes = []

    def run(batch):
        if len(batch) > 4:
            raise MemoryError
        out = net(batch)
        dtypes.append(out.dtype)
        return out.float().mean(), None

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = deferred(Passes(net), run, torch.ones(7, 3))
    loss.backward()

    assert [torch.bfloat16] * 4 == dtypes


def test_parameters_beside_the_model_are_not_counted_twice():
    """A weight of the loss itself, found by the first pass, has the whole batch's gradient."""
    net, weight = torch.nn.Linear(3, 1), torch.nn.Parameter(torch.ones(()))
    passes = Passes(net)

    def run(most):
        def one(batch):
            loss = (net(batch) * weight).mean()
            return (_NoRoom.apply(loss) if len(batch) > most else loss), None

        return one

    deferred(passes, run(99), torch.ones(4, 3))[0].backward()
    once = weight.grad.clone()
    deferred(passes, run(2), torch.ones(4, 3))[0].backward()

    torch.testing.assert_close(2 * once, weight.grad)


def test_a_batch_of_one_is_tried_once_more_and_then_given_up_in_one_line():
    """Everything is as before; the error is one of memory, which a guard around may act on."""
    net = Net()
    net.norm = torch.nn.Identity()
    before = _state(net)
    passes = Passes(net)

    with pytest.raises(DeviceOutOfMemoryError, match="cannot be split further"):
        deferred(passes, _run(net, 0), _batch(1))
    assert [1, 1] == [event.num_pieces for event in passes.pieces.events]
    _assert_equal(before, _state(net))


def test_a_piece_that_fails_for_another_reason_is_said_to_be_a_piece():
    """Batch norm refuses a single value: the message tells that memory is what ran out."""
    net = Net()

    with pytest.raises(DeviceOutOfMemoryError, match=r"1 piece .* in 2 the loss fails .ValueError"):
        deferred(Passes(net), _run(net, 1), _batch(2))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_loss_that_writes_to_its_batch_is_not_computed_again(where):
    """It would see a batch that is scaled twice; this is said, and nothing is left behind."""
    net = Net()
    run = _run(net, 4, where)

    def writes(batch):
        batch[0].div_(2)
        return run(batch)

    with pytest.raises(MemplanError, match="writes to its batch"):
        deferred(Passes(net), writes, _batch())[0].backward()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_containers_that_a_loss_empties_are_its_own():
    """A function that pops its labels finds them again in the retry."""
    net = torch.nn.Linear(3, 1)

    def run(batch):
        labels = batch.pop("labels")
        if len(labels) > 2:
            raise MemoryError
        return torch.nn.functional.mse_loss(net(batch["x"]), labels), None

    batch = {"x": torch.ones(4, 3), "labels": torch.ones(4, 1)}
    deferred(Passes(net), run, batch)[0].backward()

    assert {"x", "labels"} == set(batch)


def test_a_second_backward_pass_is_refused():
    """The graph is gone by then, as PyTorch's own is."""
    net = Net()
    loss, _ = deferred(Passes(net), _run(net), _batch())
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="runs once"):
        loss.backward()


def test_other_errors_of_the_backward_pass_leave_the_gradients_that_were_there():
    """Gradients gathered apart are dropped, those of the batches before are kept."""
    net = torch.nn.Linear(3, 1)
    net(torch.ones(1, 3)).sum().backward()
    before = net.weight.grad

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise KeyboardInterrupt

    loss, _ = deferred(Passes(net), lambda x: (Broken.apply(net(x)).sum(), None), torch.ones(2, 3))
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    assert before is net.weight.grad


@pytest.mark.parametrize("most", [99, 4])
def test_a_loss_that_goes_takes_its_batch_and_copies_along(most):
    """No circle of references keeps them until the garbage collector comes, which may be late."""
    net, batch = Net(), _batch()
    kept = weakref.ref(batch[0])
    loss, _ = deferred(Passes(net), _run(net, most), batch)
    gc.collect()
    gc.disable()
    try:
        del batch, loss
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("most", [99, 4])
def test_a_loss_kept_after_its_backward_pass_keeps_no_batch(most):
    """As a trainer does that logs the last loss."""
    net, batch = Net(), _batch()
    kept = weakref.ref(batch[0])
    loss, _ = deferred(Passes(net), _run(net, most), batch)
    gc.collect()
    gc.disable()
    try:
        loss.backward()
        del batch
        assert kept() is None
    finally:
        gc.enable()
