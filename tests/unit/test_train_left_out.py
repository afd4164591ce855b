"""Images that vanish or break while a run goes on: left out, counted, and what ends the run."""

import json

import pytest
from train_toy import Toy, ToyData, toy_options

from memplan.errors import BadInputError, ProcessError
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint


class _Torn(ToyData):
    """Finds one image broken in each epoch, another in the second, and loses all at `lost`."""

    def __init__(self, lost=None, error=BadInputError):
        super().__init__()
        self.unreadable = {}
        self.lost = lost
        self.error = error

    def training_batches(self, *, epoch, **options):
        """Count what could not be read."""
        for number, batch in enumerate(super().training_batches(epoch=epoch, **options)):
            if (epoch, number) == self.lost:
                raise self.error("The disk is gone.")
            if not number:
                self.unreadable["a.jpg is torn."] = epoch + 1
                if epoch:
                    self.unreadable["b.jpg is gone."] = 1
            yield batch


def _toy(**options):
    toy = Toy()
    toy.data = _Torn(**options)
    return toy


def _events(folder, *names):
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] in names]


def test_what_is_left_out_is_told_once_and_counted_by_epoch(tmp_path):
    """Each image by name where it is first missed, and the times at each epoch's end."""
    summary = train(_toy(), toy_options(tmp_path))
    events = _events(summary.run_folder, "image_left_out", "images_left_out")

    assert [
        (1, "a.jpg is torn."),
        (1, 1, 1),
        (2, "b.jpg is gone."),
        (2, 2, 2),
    ] == [
        (one["epoch"], one["message"])
        if "message" in one
        else (one["epoch"], one["images"], one["times"])
        for one in events
    ]


@pytest.mark.parametrize("error", [BadInputError, ProcessError])
def test_data_that_are_lost_end_the_run_saved(tmp_path, error):
    """In the second epoch's second batch: the step before is in the checkpoint."""
    with pytest.raises(BadInputError, match=r"^The disk is gone\. Everything is saved\. Cont"):
        train(_toy(lost=(1, 1), error=error), toy_options(tmp_path))

    saved = load_checkpoint(tmp_path / "runs/toy/weights/last.pt")
    assert (1, 4) == (saved.epoch, saved.position["images_seen"])
