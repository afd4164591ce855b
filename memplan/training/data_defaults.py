"""Settings that a data set recommends for itself: the `train_defaults` of its description.

A small data set learns with other settings than the one a recipe was made for. Its `data.yaml` may
say so; what is given on the command line wins:

    train_defaults: {hyp: small-set.yaml, optimizer: AdamW, effective_batch: 4}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memplan.errors import BadInputError, UnknownNameError
from memplan.files import Source, brief, is_file

KINDS: dict[str, type] = {
    "hyp": str,
    "optimizer": str,
    "effective_batch": int,
    "close_mosaic": int,
    "min_items": int,
}
"""What may be recommended, by field of `TrainOptions`."""


def data_defaults(path: Path) -> dict[str, Any]:
    """Return what a data set recommends, by field of `TrainOptions`; nothing where it is silent.

    Args:
        path: the data set's description; one that is no YAML mapping recommends nothing, and its
            own reader says what is wrong with it.

    Raises:
        UnknownNameError: something is recommended that cannot be.
        BadInputError: a value has the wrong type.
    """
    given = _read(path).get("train_defaults")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadInputError(f"{path}: train_defaults is {brief(given)}, but it must be a mapping.")
    values = {str(name).replace("-", "_"): value for name, value in given.items()}
    for name, value in values.items():
        if name not in KINDS:
            known = f"Known in {path}: {', '.join(KINDS)}."
            raise UnknownNameError("entry of train_defaults", name, KINDS, known)
        if type(value) is not KINDS[name]:
            kind = "a whole number" if KINDS[name] is int else "text"
            raise BadInputError(f"{path}: train_defaults: {name} is {brief(value)}; give {kind}.")
    # A file that travels with the data is found from anywhere.
    if "hyp" in values and is_file(path.parent / values["hyp"]):
        values["hyp"] = str(path.parent / values["hyp"])
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        content = Source(path=path, what="a data description", any_encoding=True).yaml()
    except BadInputError:
        return {}
    return content if isinstance(content, dict) else {}
