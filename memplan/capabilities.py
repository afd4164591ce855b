"""What a workload may offer besides the core that `memplan.workload.Workload` asks for.

A workload has a capability by having its members; `isinstance` tells. Subclassing the protocol is
optional, and lets a type checker compare the methods.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from memplan.inference import DetectOptions, ValidateOptions
    from memplan.workload import OptimizerSettings


@runtime_checkable
class MakesOptimizer(Protocol):
    """Has an optimizer of its own, instead of memplan's over `Workload.parameter_groups`."""

    @abstractmethod
    def make_optimizer(
        self, model: torch.nn.Module, settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        """Return the optimizer over all parameters of a model.

        Raises:
            UnknownNameError: the workload does not know the optimizer.
        """


@runtime_checkable
class Lean(Protocol):
    """Has blocks that keep less for backward (`--lean`).

    A lean block may tell the next ones how its result is made again, by a recipe that it hangs on
    the tensor. A module that is recomputed must see its inputs the same way both times, and its
    result must not keep alive what recomputing frees; so memplan takes recipes away around it, and
    knows nothing of them but the two methods here.
    """

    @abstractmethod
    def make_lean(self, model: torch.nn.Module) -> None:
        """Make blocks keep for backward only what they cannot rebuild cheaply, in place.

        Loss, gradients, running statistics and the state_dict's keys stay what they are. Called on
        the device, before modules are wrapped to recompute.

        Raises:
            UsageError: no block of the model can be lean.
        """

    @abstractmethod
    def take_recipe(self, tensor: torch.Tensor) -> object | None:
        """Take a tensor's recipe from it and return it; None where it has none."""

    @abstractmethod
    def give_recipe(self, tensor: torch.Tensor, recipe: object) -> None:
        """Hang on a tensor the recipe that was taken from it."""


@runtime_checkable
class RunsTrained(Protocol):
    """Evaluates a weights file, and detects with it (`memplan val`, `memplan predict`)."""

    @abstractmethod
    def validate(self, options: ValidateOptions) -> Iterator[str]:
        """Evaluate a split of a data set, write the details, and yield lines to print.

        Raises:
            BadInputError: weights or data cannot be used.
            UsageError: an option is out of its range.
        """

    @abstractmethod
    def detect(self, options: DetectOptions) -> Iterator[str]:
        """Detect in images and videos, write what was found, and yield a line for each.

        Raises:
            BadInputError: weights or source cannot be used.
            UsageError: an option is out of its range.
        """


@runtime_checkable
class LoadsWhole(Protocol):
    """Loads weights for evaluation, which few entries of a network make worthless."""

    @abstractmethod
    def load_whole(self, model: torch.nn.Module, path: str | Path) -> str:
        """Fill every entry of the model from a weights file and return one sentence on it.

        Raises:
            BadInputError: the file cannot be used, or an entry of the model stays as it was.
        """


@runtime_checkable
class KnowsWeights(Protocol):
    """A family that knows which of its configurations a weights file is of."""

    @abstractmethod
    def cfg_of_weights(self, path: Path) -> str | None:
        """Return the configuration's name; None where the file is of none.

        Raises:
            BadInputError: the file cannot be read, or holds no weights.
        """
