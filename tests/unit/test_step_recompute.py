"""Recomputing and averaging change memory, and nothing else."""

import copy

import pytest
import torch
from trace_toy import Counted

from memplan.errors import UsageError
from memplan.spec import StepSpec
from memplan.step.average import ModelAverage
from memplan.step.recompute import apply_recompute
from memplan.step.run import TrainingStep
from memplan.trace.fake_cuda import fake_cuda

CPU = torch.device("cpu")


def _step(recompute, precision="fp32"):
    torch.manual_seed(3)
    settings = StepSpec(precision=precision, recompute=recompute)
    return TrainingStep(Counted(), settings, CPU)


@pytest.mark.parametrize("paths", [("0", "1", "3"), ("",), ("1",)])
@pytest.mark.parametrize("precision", ["fp32", "amp-bf16"])
def test_recompute_leaves_loss_gradients_and_statistics_equal(paths, precision):
    """Batch norm's running statistics move once a step, however often the forward pass runs."""
    batch = {"images": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    plain, again = _step((), precision), _step(paths, precision)

    losses = [step.accumulate(batch)[0] for step in (plain, again)]

    assert torch.equal(losses[0], losses[1])
    for ours, theirs in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for ours, theirs in zip(plain.model.buffers(), again.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_recompute_of_a_module_that_draws_random_numbers_draws_them_again():
    """Dropout drops the same values in both runs."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
    model = torch.nn.Sequential(block)
    twin = copy.deepcopy(model)
    apply_recompute(twin, ["0"])
    x = torch.randn(4, 8)
    for net in (model, twin):
        torch.manual_seed(1)
        net(x).square().sum().backward()

    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class Noting(torch.nn.Module):
    """Hangs a note on what it returns, and says what hung on what it took in."""

    def __init__(self, seen):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = seen

    def forward(self, x):
        """Return a product that carries a note."""
        self.seen.append(getattr(x, "note", None))
        out = x * self.weight
        out.note = "mine"
        return out


class Noted(Counted):
    """Three layers that note, the middle one in a block that may be recomputed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def build_model(self):
        """Return the layers in a row."""
        block = torch.nn.Sequential(Noting(self.seen))
        return torch.nn.Sequential(Noting(self.seen), block, Noting(self.seen))

    def make_lean(self, model):
        """Leave the layers as they are."""

    def take_recipe(self, tensor):
        """Return the note, taken off."""
        return vars(tensor).pop("note", None)

    def give_recipe(self, tensor, recipe):
        """Hang the note on again."""
        tensor.note = recipe


@pytest.mark.parametrize(
    ("lean", "seen"),
    # Forward, then the block again in backward.
    [(False, [None, "mine", "mine", "mine"]), (True, [None, None, None, None])],
)
def test_what_lean_blocks_hang_on_tensors_is_taken_by_the_workload(lean, seen):
    """Both runs of a recomputed block see the same, by whatever name a workload hangs it on."""
    workload = Noted()
    step = TrainingStep(workload, StepSpec(precision="fp32", lean=lean, recompute=("1",)), CPU)
    step.accumulate({"images": torch.randn(2, 3, 8, 8)})

    assert seen == workload.seen


def test_what_was_taken_around_a_recomputed_block_is_given_back():
    """A later reader of the block's input finds the note there."""
    workload = Noted()
    model = workload.build_model()
    apply_recompute(model, ["1"], lambda: workload)
    x = torch.ones(2, requires_grad=True)
    x.note = "before"

    result = model[1](x)

    assert [None] == workload.seen
    assert ("before", None) == (x.note, getattr(result, "note", None))


def test_lean_is_refused_where_the_workload_has_none():
    """A step never silently keeps what --lean was to free."""
    with pytest.raises(UsageError, match="--lean: workload 'counted' has no lean blocks"):
        TrainingStep(Counted(), StepSpec(lean=True), CPU)


def test_recompute_of_no_module_is_refused_by_name():
    """A path that names nothing is a usage error which says so."""
    with pytest.raises(UsageError, match="--recompute 'nowhere' names no module"):
        apply_recompute(Counted().build_model(), ["nowhere"])


def test_an_average_follows_at_the_recipes_pace():
    """After one update the average has moved by 1 - 0.9999 * (1 - exp(-1 / 2000))."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = ModelAverage(model)
    before = average.model.weight.item()
    with torch.no_grad():
        model.weight += 1

    average.update()
    decay = 0.9999 * (1 - 2.718281828459045 ** (-1 / 2000))

    assert before + (1 - decay) == pytest.approx(average.model.weight.item(), abs=1e-6)


def test_an_average_of_fake_tensors_has_memory_of_its_own():
    """Copying a model of fake tensors touches no memory that they do not have.

    `copy.deepcopy` writes out of bounds there in PyTorch 2.11.
    """
    with fake_cuda():
        model = Counted().build_model()
        average = ModelAverage(model).model
        theirs = {t.untyped_storage()._cdata for t in model.state_dict().values()}
        ours = {t.untyped_storage()._cdata for t in average.state_dict().values()}

        assert not theirs & ours
        assert len(theirs) == len(ours)
        for one, other in zip(
            model.state_dict().values(), average.state_dict().values(), strict=True
        ):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_an_average_copies_values_and_shared_parameters_once():
    """The copy starts equal, needs no gradient, and parameters that were shared still are."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight

    average = ModelAverage(model).model

    assert torch.equal(model[0].weight, average[0].weight)
    assert average[0].weight is average[1].weight
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_an_average_on_the_host_is_the_one_on_the_device():
    """Tensor by tensor it comes to the same bits."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    here, away = ModelAverage(model, ramp=2), ModelAverage(model, ramp=2, on_host=True)
    here.update()
    away.update()
    away.leave_device()
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight))
        here.update()
        away.update()

    for one, other in zip(
        here.model.state_dict().values(), away.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
