"""Predict, plan and guard the GPU memory of a PyTorch training run.

`memplan.probe("yolov9-s", gpu="rtx-3090", batch=16)` tells where memory goes,
`memplan.plan("yolov9-s", gpu="rtx-3090", effective_batch=64)` chooses settings,
`memplan.train("yolov9-s", data="data.yaml", auto_batch=True)` plans and trains,
`memplan.val`, `memplan.predict` and `memplan.export` take the weights that come of it,
`memplan.record("torchvision:resnet50", batch=8)` returns a tape, and
`memplan.replay(tape, gpu="a100-80gb")` its peaks on a card;
`memplan.run("python train.py --batch 16", gpu="rtx-3090")` runs a command of your own on one;
`memplan.guard(model)` undoes and repeats passes of a loop of your own that find no room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan._version import __version__

if TYPE_CHECKING:
    from memplan.advise import (
        CommandCheck,
        CompareCards,
        Headroom,
        MaxImageSize,
        SecondCard,
        check,
        export,
        gpus,
        plan,
        predict,
        probe,
        record,
        replay,
        train,
        val,
    )
    from memplan.recording.run import run
    from memplan.trainers.find_batch import find_batch
    from memplan.trainers.guard import guard

__all__ = [
    "CommandCheck",
    "CompareCards",
    "Headroom",
    "MaxImageSize",
    "SecondCard",
    "__version__",
    "check",
    "export",
    "find_batch",
    "gpus",
    "guard",
    "plan",
    "predict",
    "probe",
    "record",
    "replay",
    "run",
    "train",
    "val",
]


def __getattr__(name: str) -> Any:
    """Import the functions, and torch with them, when one is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'memplan' has no attribute {name!r}")
    if name == "run":
        from memplan.recording.run import run

        return run
    if name == "find_batch":
        from memplan.trainers.find_batch import find_batch

        return find_batch
    if name == "guard":
        from memplan.trainers.guard import guard

        return guard
    from memplan import advise

    return getattr(advise, name)
