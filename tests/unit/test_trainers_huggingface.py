# ruff: noqa: E402 - the package is looked for before what imports it
"""Transformers' own trainer under the callback; skipped where Transformers is not installed."""

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("accelerate", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")

from benchmarks.trainers_toys import PLACES, Hit, difference, huggingface_run
from memplan.errors import UsageError
from memplan.trainers.huggingface import MemoryGuard


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["gpt", "tokens"])
def test_a_run_keeps_its_steps_weights_and_losses(kind, accumulate, tmp_path):
    """Losses that are told the items of a step, and means over tokens, in pieces of any place.

    Weights differ by rounding, which Adam's first steps make larger; nothing changes where nothing
    hits.
    """
    options = {"kind": kind, "accumulate": accumulate}
    plain = huggingface_run(Hit(), tmp_path, guarded=False, **options)

    assert 0 == difference(plain, huggingface_run(Hit(), tmp_path, guarded=True, **options))
    for where in PLACES:
        hit = huggingface_run(Hit(where), tmp_path, guarded=True, **options)
        assert plain.num_steps == hit.num_steps
        assert difference(plain, hit) < 1e-5
        assert plain.losses == pytest.approx(hit.losses, rel=1e-5)
        assert (where == "optimizer step") == (hit.num_events == 0)


def test_what_is_no_trainer_is_refused():
    """The callback itself needs the trainer, since a callback is not given it."""
    with pytest.raises(UsageError, match="given the trainer, not a str"):
        MemoryGuard("trainer")
