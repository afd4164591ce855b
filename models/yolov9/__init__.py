"""YOLOv9: network, heads, loss, data and evaluation, in memplan's own words.

torch is imported by the first call, so that listing names or starting a command stays quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .losses import DetectionLoss
    from .network import DetectionModel
    from .weights import LoadReport

__all__ = ["build", "load_weights", "loss", "names", "pad_targets", "recompute_blocks"]


def names() -> list[str]:
    """Return the configurations that ship with memplan, sorted."""
    return sorted(path.stem for path in (Path(__file__).parent / "cfg").glob("*.yaml"))


def build(
    name_or_path: str | Path, nc: int | None = None, blocks: str | None = None
) -> DetectionModel:
    """Return a network, freshly initialised; see `network.build`.

    Args:
        name_or_path: a configuration of `names()`, or the path of a description file.
        nc: number of classes; None takes the description's (80 in those shipped).
        blocks: modules, such as `package.module`, whose classes a description file names; they are
            imported.

    Raises:
        UnknownNameError: no such configuration and no such file.
        BadInputError: the file cannot be used, nc is below 1, or a module cannot be imported.
    """
    from .network import build as build_network
    from .own_blocks import load_blocks

    return build_network(name_or_path, nc, load_blocks(blocks))


def loss(
    net: DetectionModel,
    *,
    box: float = 7.5,
    cls: float = 0.5,
    dfl: float = 1.5,
    cls_pw: float = 1.0,
    fl_gamma: float = 0.0,
    assigner_parts: int = 1,
) -> DetectionLoss:
    """Return the training loss of a network, a callable (outputs, targets) -> (total, parts [3]).

    Of a network with masks it is a callable (outputs, targets, masks) -> (total, parts [4]); see
    `mask_loss.SegmentationLoss`.

    Args:
        net: what `build` returned; its head decides the number of branches.
        box: gain of the box loss.
        cls: gain of the classification loss.
        dfl: gain of the distribution focal loss.
        cls_pw: weight of the positive term of the classification loss.
        fl_gamma: focusing exponent of the classification loss; 0 means plain cross-entropy.
        assigner_parts: parts of the batch that the assigner works on one after another, >= 1:
            the same result in less memory.
    """
    from .losses import DetectionLoss, LossGains
    from .mask_loss import SegmentationLoss
    from .segment_heads import Segments

    gains = LossGains(box=box, cls=cls, dfl=dfl, cls_pw=cls_pw, fl_gamma=fl_gamma)
    head = net.head
    kind = SegmentationLoss if isinstance(head, Segments) else DetectionLoss
    return kind(
        nc=head.nc,
        strides=head.strides,
        branches=head.branches,
        gains=gains,
        assigner_parts=assigner_parts,
    )


def pad_targets(rows: Tensor, batch_size: int) -> Tensor:
    """Return target rows as one padded tensor `[B, M, 5]`; see `losses.pad_targets`.

    Args:
        rows: `[n, 6]`: image index, class, centre x, centre y, width, height, normalised.
        batch_size: B, images in the batch.
    """
    from .losses import pad_targets as pad

    return pad(rows, batch_size)


def load_weights(net: DetectionModel, path: str | Path, prefer: str = "ema") -> LoadReport:
    """Load a checkpoint's tensors that fit by name and shape; see `weights.load_weights`.

    Args:
        net: the network to fill.
        path: an official or own checkpoint; no code in it is run.
        prefer: `ema` or `model`, the weights to take when the file has both.

    Raises:
        BadInputError: the file cannot be read, is refused as unsafe, or fits in no tensor.
    """
    from .weights import load_weights as load

    return load(net, path, prefer)


def recompute_blocks(net: DetectionModel) -> list[str]:
    """Return the paths of the layers worth recomputing, such as `model.2`."""
    from .network import recompute_blocks as blocks

    return blocks(net)
