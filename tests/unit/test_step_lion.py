"""LION: its step by the paper, its memory as recorded, its resume."""

import copy

import pytest
import torch
from memplan_models.yolov9.workload import YoloV9

from memplan.errors import UnknownNameError
from memplan.spec import StepSpec
from memplan.step.lion import Lion
from memplan.step.optimizers import make_optimizer, optimizer_of
from memplan.workload import OptimizerSettings


def _weights():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights


def test_a_step_is_the_papers():
    """Weights decay, move by lr in the sign of the mixed momentum, and then the momentum moves."""
    weights = _weights()
    expected = [weight.detach().clone() for weight in weights]
    averages = [torch.zeros_like(weight) for weight in weights]
    optimizer = Lion(weights, lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    for _ in range(3):
        for place, weight in enumerate(weights):
            direction = (averages[place] * 0.9 + weight.grad * 0.1).sign()
            expected[place] = expected[place] * (1 - 0.1 * 0.5) - 0.1 * direction
            averages[place] = averages[place] * 0.99 + weight.grad * 0.01
        optimizer.step()

    for place, weight in enumerate(weights):
        assert torch.allclose(expected[place], weight.detach(), atol=1e-6)
        assert torch.allclose(averages[place], optimizer.state[weight]["exp_avg"], atol=1e-6)


def test_state_is_one_tensor_a_parameter():
    """After a step each parameter with a gradient has one tensor of its size."""
    weights = _weights()
    weights.append(torch.nn.Parameter(torch.ones(2)))  # frozen: no gradient
    optimizer = Lion(weights)
    optimizer.step()

    assert [["exp_avg"], ["exp_avg"]] == [list(optimizer.state[w]) for w in weights[:2]]
    assert weights[2] not in optimizer.state
    assert torch.equal(torch.ones(2), weights[2].detach())


def test_resuming_gives_the_same_bits():
    """A restored optimizer steps as the one that never stopped."""
    weights = _weights()
    optimizer = Lion(weights, lr=0.01)
    optimizer.step()
    others = copy.deepcopy(weights)
    for other, weight in zip(others, weights, strict=True):
        other.grad = weight.grad.clone()
    resumed = Lion(others, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    resumed.step()

    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_the_closure_is_run_with_gradients():
    """The loss that a closure returns comes back."""
    (weight,) = weights = [torch.nn.Parameter(torch.ones(1))]
    optimizer = Lion(weights, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert 1.0 == float(optimizer.step(closure).detach())
    assert 0.9 == pytest.approx(float(weight.detach()))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (0.9, 1.5)}, {"weight_decay": -1.0}])
def test_numbers_out_of_range_are_refused(bad):
    """A rate below 0 or a beta beyond 1 is no optimizer."""
    with pytest.raises(ValueError, match="is no such"):
        Lion(_weights(), **bad)


def test_the_recipe_gives_it_three_groups():
    """YOLOv9's groups, momentum as the first beta and 0.99 as the second."""
    workload = YoloV9("yolov9-t", num_classes=2, image_size=64)
    optimizer = optimizer_of(
        workload,
        workload.build_model(),
        OptimizerSettings(spec=StepSpec(optimizer="LION"), momentum=0.9, weight_decay=0.1),
    )

    assert isinstance(optimizer, Lion)
    assert ["bias", "weight", "norm"] == [group["kind"] for group in optimizer.param_groups]
    assert [0.0, 0.1, 0.0] == [group["weight_decay"] for group in optimizer.param_groups]
    assert {(0.9, 0.99)} == {group["betas"] for group in optimizer.param_groups}


def test_an_unknown_name_lists_it():
    """The message of a misspelt optimizer names LION among the known."""
    with pytest.raises(UnknownNameError, match="LION"):
        make_optimizer(_weights(), OptimizerSettings(spec=StepSpec(optimizer="LIONS")))
