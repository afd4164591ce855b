"""What a weights file is a network of: the one reader of checkpoints that are to be run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import BadInputError

from ..yolo_data.dataset import read_description
from .network import DetectionModel, build
from .own_blocks import load_blocks
from .weights import CheckpointFacts, facts_of, load_state, read_checkpoint, state_of_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """What a weights file holds, as a network in evaluation mode."""

    net: DetectionModel
    class_names: tuple[str, ...]
    facts: CheckpointFacts
    notes: tuple[str, ...]
    """What was read and guessed, a line each."""


def read_trained(
    weights: Path, cfg: str | None = None, data: Path | None = None, blocks: str | None = None
) -> Trained:
    """Return the network of a checkpoint, every entry of it filled.

    Args:
        weights: an official checkpoint or one of memplan's own, not fused.
        cfg: the architecture; None takes what the checkpoint says.
        data: a `data.yaml` that names the classes; None takes what the checkpoint says.
        blocks: modules of the user's whose classes the architecture names; they are imported.

    Raises:
        BadInputError: the file cannot be read, says no architecture, or does not fill it.
    """
    content = read_checkpoint(weights)
    facts = facts_of(content)
    slot, state = state_of_checkpoint(content, weights)
    description = cfg or facts.description or facts.cfg
    if description is None:
        raise BadInputError(
            f"{weights} does not say which architecture it is of. "
            "Give --cfg, such as --cfg yolov9-s."
        )
    num_classes, own = facts.num_classes or _classes_in(state), load_blocks(blocks)
    if isinstance(description, str):
        net = build(_cfg_name(description), num_classes, own)
    else:
        net = DetectionModel(description, num_classes, "checkpoint", own)
    report = load_state(net, slot, state, weights)
    if report.missing or report.reshaped:
        raise BadInputError(
            f"{weights} does not fill {net.name}: {report.mismatches()} "
            "Give the --cfg that it was trained with."
        )
    names, notes = _class_names(data, facts, net.nc)
    return Trained(net.eval(), names, facts, (str(report), *notes))


def _cfg_name(cfg: str) -> str:
    """Return a configuration's name, or the path of a file that exists."""
    path = Path(cfg)
    return path.stem if path.suffix in {".yaml", ".yml"} and not path.is_file() else cfg


def _classes_in(state: dict[str, Tensor]) -> int | None:
    """Return how many classes the last class convolution has; None where there is none."""
    biases = [t for name, t in state.items() if ".cv3." in name and name.endswith(".2.bias")]
    return len(biases[0]) if biases else None


def _class_names(
    data: Path | None, facts: CheckpointFacts, count: int
) -> tuple[tuple[str, ...], list[str]]:
    """Return names by class number, and a note where they are numbers only."""
    if data is not None:
        names = read_description(data).class_names
        if len(names) != count:
            raise BadInputError(
                f"{data} names {len(names)} classes, but the weights are of {count}. "
                "Give the data.yaml that they were trained with."
            )
        return names, []
    found = facts.class_names
    if found is None and facts.data and Path(facts.data).is_file():
        with contextlib.suppress(BadInputError):
            found = read_description(Path(facts.data)).class_names
    if found is not None and len(found) == count:
        return found, []
    return tuple(map(str, range(count))), [
        "Classes are named by their numbers; --data data.yaml gives them names."
    ]
