"""An optimizer's step that finds no room is undone and taken again, bit for bit."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_toy import Toy, toy_options

from memplan.training.setup import prepare
from memplan.training.update import SafeUpdate


class _FailsAt(TorchDispatchMode):
    """Raises in place of the so-many-th operator, and of each after it where it lasts."""

    def __init__(self, at, *, lasts=False):
        super().__init__()
        self.left = at
        self.lasts = lasts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.left -= 1
        if self.left == -1 or (self.lasts and self.left < 0 and "copy_" not in str(func)):
            raise torch.OutOfMemoryError("no room")
        return func(*args, **(kwargs or {}))


class _Clipped(Toy):
    clip_gradient_norm = 10.0


def _step(tmp_path, optimizer):
    """Return a step with state in its optimizer and gradients to take."""
    step = prepare(_Clipped(norm=True), toy_options(tmp_path, optimizer=optimizer)).step
    for seed in (1, 2):
        torch.manual_seed(seed)
        batch = {"images": torch.rand(4, 3, 8, 8), "targets": torch.rand(4)}
        step.accumulate(step.training_batch(batch))
        if seed == 1:
            step.update()
    return step


def _values(step):
    tensors = [*step.model.state_dict().values(), *step.average.model.state_dict().values()]
    for state in step.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_step_refused_at_any_operator_equals_one_that_was_not(tmp_path, optimizer):
    """Weights, optimizer state and average are those of an undisturbed step."""
    plain = _step(tmp_path, optimizer)
    assert SafeUpdate(plain).take() is None
    for at in range(0, 120, 29):
        step = _step(tmp_path, optimizer)
        with _FailsAt(at):
            assert SafeUpdate(step).take() is None
        for expected, actual in zip(_values(plain), _values(step), strict=True):
            assert torch.equal(expected, actual), at
        assert plain.average.updates == step.average.updates


def test_a_step_that_never_finds_room_leaves_everything_as_it_was(tmp_path):
    """Nothing is half-applied, so that what is saved is a whole state."""
    step = _step(tmp_path, "AdamW")
    before = _values(step)
    with _FailsAt(60, lasts=True):
        refusal = SafeUpdate(step).take()

    assert "no room" == refusal.message
    for expected, actual in zip(before, _values(step), strict=True):
        assert torch.equal(expected, actual)
