"""Two cards train together over NCCL: memory runs out on one, gradients, buckets, the time-out.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.gpu.ranks FOLDER

Runs what `tests/unit/rank_checks.py` checks over gloo on CPUs, with a card for each rank; rank 0
prints one JSON line a check. It has not run on cards yet.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from memplan.errors import BadInputError

CHECKS = ("out_of_memory", "unused", "lean")


def main() -> None:
    """Run the checks on this rank's card.

    Raises:
        BadInputError: there are fewer cards than two, or no folder is given.
    """
    if len(sys.argv) != 2 or torch.cuda.device_count() < 2:
        raise BadInputError(
            f"Needs a folder and two cards; {torch.cuda.device_count()} usable here. Start it with "
            "torchrun --standalone --nproc-per-node=2 -m benchmarks.gpu.ranks FOLDER"
        )
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "unit"))
    os.environ["RANK_CHECKS"] = "cuda"
    import rank_checks

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rank_checks.run(folder, CHECKS)
    if int(os.environ["RANK"]) == 0:
        for name in CHECKS:
            found = json.loads((folder / f"{name}-0.json").read_text())
            sys.stdout.write(json.dumps({"check": name, **found}) + "\n")


if __name__ == "__main__":
    main()
