# ruff: noqa: E402 - the package is looked for before what imports it
"""Ultralytics' own trainer under the callback; skipped where Ultralytics is not installed."""

import pytest
import torch

pytest.importorskip("ultralytics", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")

from benchmarks.trainers_toys import PLACES, Hit, difference, ultralytics_run
from memplan.errors import UsageError
from memplan.trainers.ultralytics import MemoryGuard, split_images


def test_a_run_keeps_its_steps_and_batch(tmp_path):
    """Nothing changes where nothing hits; else batch and steps stay, weights come close."""
    plain = ultralytics_run(Hit(), tmp_path, guarded=False)

    assert 0 == difference(plain, ultralytics_run(Hit(), tmp_path, guarded=True))
    for where in PLACES:
        hit = ultralytics_run(Hit(where, 2), tmp_path, guarded=True)
        assert (plain.num_steps, plain.batch_size) == (hit.num_steps, hit.batch_size)
        assert difference(plain, hit) < (1e-6 if where == "optimizer step" else 1e-2)
        assert (where == "optimizer step") == (hit.num_events == 0)


@pytest.mark.parametrize("masks", ["of objects", "of images"])
def test_objects_go_with_their_images(masks):
    """Each piece has its own images' objects, numbered anew; an image may have none."""
    owners = torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0])
    batch = {
        "im_file": ["a", "b", "c"],
        "img": torch.arange(3).float().view(3, 1, 1, 1),
        "cls": torch.arange(5).view(5, 1),
        "batch_idx": owners,
        "masks": torch.arange(5 if masks == "of objects" else 3).view(-1, 1, 1),
    }

    (one, first), (two, second) = split_images(batch, 2)

    assert (1, 2) == (one, two)
    assert (["a"], ["b", "c"]) == (first["im_file"], second["im_file"])
    assert ([0, 0], [1, 1, 1]) == (first["batch_idx"].tolist(), second["batch_idx"].tolist())
    assert ([0, 1], [2, 3, 4]) == (
        first["cls"].flatten().tolist(),
        second["cls"].flatten().tolist(),
    )
    wanted = ([0, 1], [2, 3, 4]) if masks == "of objects" else ([0], [1, 2])
    assert wanted == (first["masks"].flatten().tolist(), second["masks"].flatten().tolist())


def test_what_has_no_callbacks_is_refused():
    """In one line, with what is wanted."""
    with pytest.raises(UsageError, match="YOLO model or a trainer, not a Linear"):
        MemoryGuard().attach(torch.nn.Linear(1, 1))
