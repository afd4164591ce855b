"""The optimizer's groups of the official recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from memplan.workload import OptimizerSettings


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the groups in the official order: biases, decayed weights, norm weights."""
    norms = tuple(kind for name, kind in vars(nn).items() if "Norm" in name)
    kinds: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "norm": []}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "norm" if isinstance(module, norms) else "weight"
            kinds["bias" if name == "bias" else kind].append(parameter)
    return [
        {
            "params": parameters,
            "kind": kind,
            "weight_decay": settings.weight_decay if kind == "weight" else 0.0,
        }
        for kind, parameters in kinds.items()
        if parameters
    ]
