"""What a data set is, in a few short texts that differ when it has changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .scan import LabelledImage


def fingerprint(
    class_names: Sequence[str],
    training: Sequence[LabelledImage],
    validation: Sequence[LabelledImage],
) -> dict[str, str]:
    """Return a digest of each part of a data set, by what people call it.

    Images count by file name and size, wherever their folder is; pixels are not read.

    Args:
        class_names: by class index.
        training: images of the training split, in their order.
        validation: the same of validation.
    """
    facts = {"class names": _digest(name.encode() for name in class_names)}
    for split, images in (("training", training), ("validation", validation)):
        facts[f"{split} images"] = _digest(
            f"{one.path.name} {one.height} {one.width}".encode() for one in images
        )
        facts[f"{split} labels"] = _digest(
            np.ascontiguousarray(one.labels, np.float32).tobytes() for one in images
        )
    return facts


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
