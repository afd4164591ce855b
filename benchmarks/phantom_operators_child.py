"""The phantom card's side of `phantom_operators`: operators, run by PyTorch's own host code."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.alignment import measured_events
from benchmarks.operator_cases import FAMILIES
from benchmarks.phantom_sizes import ToldSizes
from memplan.trace.snapshot import snapshot_of


@torch.no_grad()
def run_operators(*, told: list[list[Any]], out: Path) -> dict[str, str]:
    """Run every operator in this process, a phantom card beneath it; return what failed.

    Args:
        told: for each operator, what its recording was told of sizes.
        out: gets the signed sizes of each, as JSON; frees between two allocations sorted.
    """
    warnings.simplefilter("ignore")
    # The matrix libraries' workspaces, taken once a process, are left out on both sides.
    square = torch.zeros(8, 8, device="cuda")
    torch.nn.functional.linear(square, square @ square, square[0])
    sizes, failed, found = ToldSizes(), {}, []
    cases = ((family.__name__, *case) for family in FAMILIES for case in family())
    for asked, (family, name, run) in zip(told, cases, strict=True):
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python")  # noqa: SLF001
        kept = None
        try:
            sizes.begin(asked)
            kept = run()
            sizes.end()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one runs
            failed[f"{family}: {name}"] = str(error).partition("\n")[0]
            sizes.forget()
        snapshot = snapshot_of(torch.cuda.memory._snapshot(0), 0)  # noqa: SLF001
        torch.cuda.memory._record_memory_history(None)  # noqa: SLF001
        del kept
        found.append([event.size for event in measured_events(snapshot.trace)])
    out.write_text(json.dumps(found))
    return failed
