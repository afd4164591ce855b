"""The capability of lean blocks, apart from the others because the table of levers asks for it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


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
