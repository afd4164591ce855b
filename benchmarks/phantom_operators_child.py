"""The phantom card's side of `phantom_operators`: operators, run by PyTorch's own host code."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.operator_cases import FAMILIES
from benchmarks.phantom_sizes import ToldSizes


@torch.no_grad()
def run_operators(*, told: list[list[Any]], out: Path) -> dict[str, str]:
    """Run every operator in this process, a phantom card beneath it; return what failed.

    Args:
        told: for each operator, what its recording was told of sizes.
        out: gets the signed sizes of each, as JSON.
    """
    warnings.simplefilter("ignore")
    # The matrix libraries' workspaces, taken once a process, are left out on both sides.
    square = torch.zeros(8, 8, device="cuda")
    torch.nn.functional.linear(square, square @ square, square[0])
    sizes, failed, found = ToldSizes(), {}, []
    number = 0
    for family in FAMILIES:
        for name, run in family():
            torch.cuda.memory._record_memory_history("all", context=None, stacks="python")  # noqa: SLF001
            try:
                sizes.begin(told[number])
                kept = run()
                sizes.end()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one runs
                failed[f"{family.__name__}: {name}"] = str(error).partition("\n")[0]
                sizes.forget()
            (trace,) = torch.cuda.memory._snapshot(0)["device_traces"]  # noqa: SLF001
            torch.cuda.memory._record_memory_history(None)  # noqa: SLF001
            kept = None
            found.append(
                [
                    entry["size"] if entry["action"] == "alloc" else -entry["size"]
                    for entry in trace
                    if entry["action"] in ("alloc", "free_requested")
                ]
            )
            number += 1
    del kept
    out.write_text(json.dumps(found))
    return failed
