"""Toys whose memory is no line in the batch: squares, steps, thresholds, limits of what runs."""

import torch

from memplan.workload import Workload


class Growing(Workload):
    """A linear layer on 64 numbers an image, and a loss with terms that grow as they are told.

    Args:
        width: numbers that the layer makes of an image.
        pairs: numbers of each image by which it is compared with every other; 0 compares none.
        pair_copies: tables of pairs that are kept.
        chunk: images in a round of a loop; 0 loops over nothing.
        threshold: images from which on a further tensor is made; 0 never.
        odd: whether odd batches make one more.
        runs_to: images above which the step raises; 0 never.
    """

    name = "growing"
    image_size = 8

    def __init__(
        self, *, width=256, pairs=0, pair_copies=1, chunk=0, threshold=0, odd=False, runs_to=0
    ):
        self.width = width
        self.pairs = pairs
        self.pair_copies = pair_copies
        self.chunk = chunk
        self.threshold = threshold
        self.odd = odd
        self.runs_to = runs_to

    def build_model(self):
        """Return one layer."""
        return torch.nn.Linear(64, self.width)

    def make_batch(self, micro_batch_size):
        """Return images alone."""
        return {"images": torch.zeros(micro_batch_size, 64)}

    def compute_loss(self, model, batch):
        """Return the sum of all terms."""
        images = batch["images"]
        if 0 < self.runs_to < len(images):
            raise AssertionError(f"no more than {self.runs_to} images")
        outputs = model(images)
        loss = outputs.square().sum()
        if self.pairs:
            narrow = outputs[:, : self.pairs]
            table = narrow @ narrow.T
            loss = loss + table.expand(self.pair_copies, -1, -1).exp().sum()
        if self.chunk:
            parts = [part.exp().mean() for part in outputs.split(self.chunk)]
            loss = loss + torch.stack(parts).sum()
        if 0 < self.threshold <= len(images):
            loss = loss + outputs.repeat(1, 8).exp().sum()
        if self.odd and len(images) % 2:
            loss = loss + outputs.repeat(1, 2).exp().sum()
        return loss, loss.detach()[None]


def contrastive(image_size=8):
    """Return a workload that compares every image with every other."""
    del image_size
    return Growing(pairs=8)


def limited(image_size=8):
    """Return a workload that runs no more than 300 images."""
    del image_size
    return Growing(runs_to=300)
