"""A workload small enough to train in milliseconds, for the tests of the training run."""

from __future__ import annotations

import numpy as np
import torch

from memplan.spec import LEVER, StepSpec
from memplan.training import TrainOptions
from memplan.workload import Workload, dealt

NUM_IMAGES = 10
HYPERPARAMETERS = {"warmup_epochs": 0.0, "lr0": 0.001, "weight_decay": 0.0}


class ToyData:
    """Ten images of noise whose target is their mean; the order follows seed and epoch."""

    num_classes = 1
    class_names = ("thing",)
    warnings = ()
    num_training_images = NUM_IMAGES
    num_validation_images = 4
    objects_per_image = np.ones(NUM_IMAGES, np.int64)

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(NUM_IMAGES, 3, 8, 8, generator=generator)
        self.targets = self.images.mean((1, 2, 3))
        self.seed = seed
        self.calls = []
        self.fitness = None

    def _batch(self, chosen):
        return {"images": self.images[chosen], "targets": self.targets[chosen]}

    def training_batches(
        self, *, micro_batch_size, epoch, augment_fully, first_image=0, rank=0, num_ranks=1
    ):
        """Return the epoch's batches and note the call."""
        self.calls.append((epoch, augment_fully))
        order = np.random.default_rng([self.seed, epoch]).permutation(NUM_IMAGES)[first_image:]
        for part in dealt(len(order), micro_batch_size, rank, num_ranks):
            yield self._batch(torch.from_numpy(order[part.start : part.stop]))

    def num_batches(self, micro_batch_size):
        """Return the batches of an epoch."""
        return -(-NUM_IMAGES // micro_batch_size)

    def validation_batches(self, *, micro_batch_size):
        """Return the first four images."""
        for start in range(0, 4, micro_batch_size):
            yield self._batch(torch.arange(start, min(4, start + micro_batch_size)))

    def evaluator(self):
        """Return a fresh evaluator."""
        return ToyEvaluator(self)


class ToyEvaluator:
    """Mean squared error as fitness, or what the data's `fitness` list says, one an evaluation."""

    def __init__(self, data):
        self.data = data
        self.errors = []

    def update(self, predictions, batch):
        """Add a batch's errors."""
        self.errors.append((predictions.squeeze(1) - batch["targets"]).square())

    def compute(self):
        """Return the fitness."""
        if self.data.fitness is not None:
            return {"fitness": self.data.fitness.pop(0)}
        return {"fitness": 1 / (1 + float(torch.cat(self.errors).mean()))}


class Toy(Workload):
    """Convolution, optional batch norm and dropout, linear; loss summed over the images."""

    name = "toy"
    image_size = 8
    nominal_batch_size = 4
    keeps_average = True
    loss_names = ("error",)

    def __init__(self, *, most_images=None, norm=False, dropout=0.0, hyperparameters=None):
        self.most_images = most_images
        self.norm = norm
        self.dropout = dropout
        self.hyperparameters = HYPERPARAMETERS | dict(hyperparameters or {})
        self.data = None
        self.refused = 0

    def build_model(self):
        """Return the layers in a row."""
        layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU()]
        if self.norm:
            layers.append(torch.nn.BatchNorm2d(4))
        layers += [torch.nn.Dropout(self.dropout), torch.nn.Flatten(), torch.nn.Linear(144, 1)]
        return torch.nn.Sequential(*layers)

    def make_batch(self, micro_batch_size):
        """Return zeros."""
        return {
            "images": torch.zeros(micro_batch_size, 3, 8, 8),
            "targets": torch.zeros(micro_batch_size),
        }

    def compute_loss(self, model, batch):
        """Return the squared error, or refuse more than `most_images`."""
        outputs = model(batch["images"]).squeeze(1)
        if self.most_images is not None and len(outputs) > self.most_images:
            self.refused += 1
            raise torch.OutOfMemoryError("Tried to allocate 1 GiB.\nMore lines.")
        errors = (outputs - batch["targets"]).square()
        return errors.sum(), errors.detach().mean()[None]

    def open_data(self, options):
        """Return the ten images, always the same object."""
        if self.data is None:
            self.data = ToyData(options.seed)
        return self.data


def toy_options(tmp_path, **changes):
    """Return options of a quick CPU run in a temporary folder."""
    description = tmp_path / "data.yaml"
    description.touch()
    values = {
        "data": description,
        "image_size": 8,
        "batch": 4,
        "epochs": 2,
        "device": "cpu",
        "project": tmp_path / "runs",
        "name": "toy",
    }
    levers = {name: changes.pop(name) for name in [*changes] if name in LEVER}
    values |= {"spec": StepSpec(**levers), "given": tuple(levers)} | changes
    return TrainOptions(**values)
