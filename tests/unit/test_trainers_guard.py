"""A loop of one's own under `memplan.guard`."""

import random
import subprocess
import sys
from collections import UserDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import memplan
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.trainers.batches import split

DOCS = Path(__file__).parents[2] / "docs" / "guard_any_loop.md"


def _model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def _batch(count=7):
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(count, 3, generator=generator),
        "y": torch.randn(count, 1, generator=generator),
    }


def _loss(model, most, reduction="mean"):
    """Return a loss function that finds no room for more than `most` samples, after its pass."""

    def loss(batch):
        value = torch.nn.functional.mse_loss(model(batch["x"]), batch["y"], reduction=reduction)
        if len(batch["x"]) > most:
            value.backward(retain_graph=True)  # half-made gradients, as when backward runs out
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return value

    return loss


def _gradients(model):
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_gradients_of_the_pieces_are_those_of_the_whole_batch(reduction, most):
    """An odd batch in 2, 4 or 7 pieces leaves loss and gradients of the batch, to rounding."""
    whole, pieces = _model(), _model()
    expected = _loss(whole, 99, reduction)(_batch())
    expected.backward()

    with memplan.guard(pieces, loss=reduction) as guard:
        loss = guard(_loss(pieces, most, reduction), _batch())

    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(_gradients(pieces), _gradients(whole))


def test_gradients_that_were_there_are_kept():
    """A loop that accumulates loses nothing of the batches before."""
    model, twin = _model(), _model()
    for _ in range(2):
        _loss(twin, 99)(_batch()).backward()
    step = memplan.guard(model)(_loss(model, 99))
    step(_batch())
    memplan.guard(model)(_loss(model, 2))(_batch())

    torch.testing.assert_close(_gradients(model), _gradients(twin))


def test_everything_is_as_before_where_nothing_helps():
    """Parameters, buffers, gradients, optimizer, scaler and random states are as before."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = optimizer.state_dict(), scaler.state_dict()
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    def loss(batch):
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        model(batch).sum().backward()
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemplanError, match="cannot be split further"):
        memplan.guard(model, scaler=scaler)(loss)(torch.ones(4, 2, 3))

    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert [None] * 4 == _gradients(model)
    assert states == (optimizer.state_dict(), scaler.state_dict())
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1] == random.getstate()
    assert (numbers[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_the_scaler_scales_each_piece():
    """Under a scaler the gradients are the whole batch's times its scale."""
    model, twin = _model(), _model()
    _loss(twin, 99)(_batch()).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    memplan.guard(model, scaler=scaler)(_loss(model, 99))(_batch())
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))

    torch.testing.assert_close(_gradients(model), _gradients(twin))


def test_the_whole_batch_is_tried_again_after_a_spike():
    """After `retry_after` passes in pieces the batch is whole again."""
    model = _model()
    guard = memplan.guard(model, retry_after=2)
    guard(_loss(model, 4), _batch())
    seen = []
    for _ in range(4):
        guard(_loss(model, 99), _batch())
        seen.append(guard.num_pieces)

    assert [2, 2, 1, 1] == seen
    assert [(0, 1)] == [(event.step, event.num_pieces) for event in guard.events]


def test_a_batch_that_never_fits_is_tried_ever_less_often():
    """Each trial that finds no room doubles the passes before the next."""
    model = _model()
    guard = memplan.guard(model, retry_after=2)
    for _ in range(12):
        guard(_loss(model, 4), _batch())

    assert [0, 3, 8] == [event.step for event in guard.events]


def test_other_errors_pass():
    """An error of the loop's own is not taken for want of memory."""
    with pytest.raises(RuntimeError, match="shapes"):
        memplan.guard(_model())(_raise)(_batch())


def _raise(_):
    raise RuntimeError("shapes")


def test_nested_batches_are_split_and_other_values_go_with_each_piece():
    """Dictionaries, lists, tuples and mapping classes keep their kind; texts go with samples."""
    pair = namedtuple("pair", "a b")  # noqa: PYI024
    rows = torch.arange(3)
    batch = UserDict(x=[rows, (rows, 5)], y=pair(rows, None), names=["a", "b", "c"], n=2)

    (one, first), (two, second) = split(batch, 2)

    assert (1, 2) == (one, two)
    assert isinstance(second, UserDict)
    assert isinstance(second["y"], pair)
    assert [1, 2] == second["x"][1][0].tolist()
    assert (["a"], ["b", "c"], 2, 5) == (
        first["names"], second["names"], second["n"], second["x"][1][1],
    )  # fmt: skip


def test_a_layout_that_is_not_understood_is_named_with_the_way_out():
    """Tensors that disagree about the batch are refused, and split= is offered."""
    with pytest.raises(BadInputError, match=r"\[2, 3\] cannot be split. Give guard"):
        split([torch.ones(2), torch.ones(3)], 2)


def test_several_ranks_are_refused(tmp_path):
    """A model under DDP is refused in one line: its ranks would wait for each other."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(_model())
        with pytest.raises(UsageError, match="several ranks"):
            memplan.guard(model)
    finally:
        torch.distributed.destroy_process_group()


def test_the_example_of_the_docs_runs():
    """The page's loop, as it stands there."""
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-c", code]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert (0, "") == (done.returncode, done.stderr)


def test_a_retry_that_draws_is_the_run_in_pieces_bit_for_bit():
    """Dropout draws for the pieces what it would have drawn without the failed pass."""

    def stepped(most, held):
        model = torch.nn.Sequential(_model(), torch.nn.Dropout(0.5))
        guard = memplan.guard(model, retry_after=9)
        if held:
            guard(_loss(model, 4), _batch())
            model.zero_grad()
        torch.manual_seed(3)
        guard(_loss(model, most), _batch())
        return _gradients(model), torch.get_rng_state()

    torch.testing.assert_close(stepped(99, held=True), stepped(4, held=False), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_finds_no_room_is_taken_one_parameter_at_a_time(kind, scaled, monkeypatch):
    """Weights and state are those of the step that found room, with a scheduler and a scaler."""

    def trained(hits):
        model = _model()
        optimizer = kind(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
        guard = memplan.guard(model, scaler=scaler)
        monkeypatch.setattr(kind, "step", _hit_step(kind.step, hits))
        for _ in range(3):
            optimizer.zero_grad()
            guard(_loss(model, 99), _batch())
            guard.step(optimizer)
            if scaler:
                scaler.update()
            scheduler.step()
        monkeypatch.undo()
        return dict(model.state_dict()), optimizer.state_dict()["state"], scheduler.get_last_lr()

    torch.testing.assert_close(trained(0), trained(2), rtol=0, atol=0)


def _hit_step(step, hits):
    """Return an optimizer's step that spoils its weights and finds no room, `hits` times."""
    left = [hits]

    def hit(self, closure=None):
        if left[0]:
            left[0] -= 1
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(3)
                    parameter.grad.mul_(3)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, closure)

    return hit


def test_a_step_that_never_finds_room_leaves_everything_as_it_was(monkeypatch):
    """One line, and weights and gradients of before."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = memplan.guard(model)
    guard(_loss(model, 99), _batch())
    before = [one.detach().clone() for one in (*model.parameters(), *_gradients(model))]
    monkeypatch.setattr(torch.optim.SGD, "step", _hit_step(torch.optim.SGD.step, 99))

    with pytest.raises(MemplanError, match="one parameter at a time"):
        guard.step(optimizer)

    after = [*model.parameters(), *_gradients(model)]
    torch.testing.assert_close(before, [one.detach() for one in after], rtol=0, atol=0)


def test_a_guard_around_a_guard_splits_what_the_inner_one_cannot():
    """The inner guard's last word is one of memory, so the outer one makes its batch smaller."""
    model = _model()
    inner, outer = memplan.guard(model), memplan.guard(model)
    whole = [lambda batch, pieces: [(1, batch)]]  # noqa: ARG005
    inner = memplan.guard(model, split=whole[0])

    def loss(batch):
        inner(_loss(model, 4), batch)
        model.zero_grad()
        return _loss(model, 4)(batch)

    outer(loss, _batch())

    assert (1, 2) == (inner.num_pieces, outer.num_pieces)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: memplan.guard(lambda batch: batch), "the network first, not a function"),
        (lambda: memplan.guard(_model(), loss="max"), "'mean' nor 'sum'"),
        (lambda: memplan.guard(_model(), retry_after=0), "1 or more"),
        (lambda: memplan.guard(_model(), retry_after=2.5), "whole number"),
        (lambda: memplan.guard(_model(), split=3), "split=3"),
        (lambda: memplan.guard(_model(), scaler=True), "GradScaler"),
        (lambda: memplan.guard(_model())(_batch()), "loss function first, not a dict"),
        (lambda: memplan.guard(_model())(lambda _: 1.5)(_batch()), "returned a float"),
        (lambda: memplan.guard(_model())(_generator)(_batch()), "returned a generator"),
        (lambda: memplan.guard(_model()).step(_model()), "no torch.optim.Optimizer"),
    ],
)
def test_wrong_use_is_told_in_one_line(make, words):
    """What was given, and what is wanted."""
    with pytest.raises(UsageError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


def _generator(batch):
    yield batch


@pytest.mark.parametrize(
    "parts", [None, [], [1, 2], [("a", 1), ("b", 2)], [(0, 1), (0, 2)], {1: 2}], ids=str
)
def test_what_a_split_of_ones_own_returns_is_checked(parts):
    """Anything but samples and pieces is named, where it would have been unpacked."""
    model = _model()
    guard = memplan.guard(model, split=lambda *_: parts)

    with pytest.raises(UsageError, match=r"split\(\) returned"):
        guard(_loss(model, 4), _batch())


def test_a_batch_of_no_samples_passes_through():
    """It is one piece, whatever the batches before came in."""
    model = _model()
    guard = memplan.guard(model, loss="sum")
    guard(_loss(model, 4, "sum"), _batch())

    assert 0 == guard(_loss(model, 4, "sum"), _batch(0))


class _Counting(torch.nn.Module):
    """Counts the samples it sees, as a metric does."""

    def __init__(self):
        super().__init__()
        self.net = _model()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.net(x)


@pytest.mark.parametrize("most", [2, 99])
def test_an_evaluation_in_pieces_is_that_of_the_whole_batch(most):
    """Tensors in a row, means averaged, each sample counted once; training's pieces stay."""
    model = _Counting()
    guard = memplan.guard(model)

    def evaluate(batch):
        outputs = model(batch["x"])
        if len(batch["x"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return {"outputs": outputs, "error": (outputs - batch["y"]).square().mean()}

    found = guard.evaluate(evaluate, _batch())

    expected = model.net(_batch()["x"])
    torch.testing.assert_close(expected, found["outputs"])
    torch.testing.assert_close((expected - _batch()["y"]).square().mean(), found["error"])
    assert not found["outputs"].requires_grad
    assert 7 == model.seen
    assert (1, most == 2) == (guard.num_pieces, bool(guard.events))
