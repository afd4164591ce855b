"""cuDNN asked about a convolution under cuBLASLt's documented log: which engines it drops."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from memplan.convolution import ConvolutionProblem

# In this very process: the oracle itself asks on a phantom card.
_ASK = """
import ast, json, sys
from memplan.device import catalogue
from memplan.device.cudnn_asking import answer
device = json.dumps(catalogue.card(sys.argv[2]).cudnn_description())
problem = ast.literal_eval(sys.argv[1])
print(answer(device=device, problems=[problem], every=False)[0][0])
"""


def refused_products(problem: ConvolutionProblem, card: str) -> tuple[int, int]:
    """Return what cuDNN asks for, bytes, and how often it first sought cuBLASLt in vain.

    A process of its own asks with nothing cached, under cuBLASLt's documented log.

    Args:
        problem: the convolution.
        card: name in the catalogue.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        quiet = {"MEMPLAN_CACHE": "off", "CUBLASLT_LOG_LEVEL": "1", "CUBLASLT_LOG_FILE": str(log)}
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, repr(asdict(problem)), card],
            env=os.environ | quiet, capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = log.read_text().splitlines() if log.exists() else []
    return int(asked.stdout), sum("[Error][cublasLtCreate]" in line for line in lines)
