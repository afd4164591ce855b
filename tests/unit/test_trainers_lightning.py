# ruff: noqa: E402 - the package is looked for before what imports it
"""Lightning's own trainer under the callback; skipped where Lightning is not installed."""

import pytest

pytest.importorskip("lightning", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")

from benchmarks.trainers_toys import PLACES, Hit, difference, lightning_run
from memplan.errors import UsageError
from memplan.trainers.lightning import MemoryGuard


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_nothing_hits_is_the_plain_run_bit_for_bit(accumulate):
    """The callback changes nothing until memory runs out."""
    plain, guarded = (
        lightning_run(Hit(), guarded=guarded, accumulate=accumulate) for guarded in (False, True)
    )

    assert 0 == difference(plain, guarded)
    assert plain.losses == guarded.losses


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", PLACES)
def test_a_run_keeps_its_steps_weights_and_logged_loss(where, accumulate):
    """Pieces leave what the whole batches would have left, to rounding."""
    plain = lightning_run(Hit(), guarded=False, accumulate=accumulate)

    hit = lightning_run(Hit(where), guarded=True, accumulate=accumulate)

    assert plain.num_steps == hit.num_steps
    assert difference(plain, hit) < 1e-6
    assert plain.losses == pytest.approx(hit.losses, rel=1e-5)
    assert (where == "optimizer step") == (hit.num_events == 0)


def test_the_module_is_left_as_it_was():
    """After training, and after an error, `training_step` is the class's again."""
    import lightning
    import torch

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch):
            raise KeyError(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    net = Net()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[MemoryGuard()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.raises(KeyError):
        trainer.fit(net, torch.utils.data.DataLoader([torch.ones(1)]))
    assert "training_step" not in vars(net)


def test_manual_optimization_is_refused_in_one_line():
    """There the module runs its own backward pass, which `memplan.guard` is for."""
    import lightning

    net = lightning.LightningModule()
    net.automatic_optimization = False
    with pytest.raises(UsageError, match=r"memplan\.guard"):
        MemoryGuard().on_train_start(lightning.Trainer(accelerator="cpu", logger=False), net)
