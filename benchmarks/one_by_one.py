"""What the workspaces of 1x1 convolutions leave open.

A 1x1 convolution of stride 1 is a matrix product, and cuDNN has an engine that gives it to
cuBLASLt. Asked with no driver loaded, cuDNN tries that engine first and drops it: cuBLASLt's own
log (`CUBLASLT_LOG_LEVEL=1`) says that `cublasLtCreate` failed for want of a driver. On a card it
need not fail. What it asks for then is known from one public recording only, 4 MiB; so a
prediction stands between three: as asked, products in backward, products in both directions.

Source: the log as above, cuDNN 9.10 and 9.19, for float32 and float16, all three kinds, and never
for strides above 1 or larger windows; the recording is HugePandaCoder/octree-nca-groupeq
my_snapshot.pickle@0cc7299, an allocation of 4,194,304 bytes under a 1x1 convolution.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path

import numpy as np

from memplan.convolution import ConvolutionProblem
from memplan.tape import Int64
from memplan.units import MIB

PRODUCT_BYTES = 4 * MIB


def is_one_by_one(problem: ConvolutionProblem) -> bool:
    """Return whether a convolution's window is one position."""
    return all(size == 1 for size in problem.weight[2:])


def is_matrix_product(problem: ConvolutionProblem) -> bool:
    """Return whether a convolution is one matrix product an image."""
    return (
        is_one_by_one(problem)
        and problem.groups == 1
        and all(step == 1 for step in problem.stride)
        and not any(problem.padding)
    )


class OneByOne(Enum):
    """Which 1x1 convolutions are taken to run as matrix products of cuBLASLt."""

    AS_ASKED = "as asked"
    PRODUCTS_IN_BACKWARD = "products in backward"
    PRODUCTS = "products"

    def applied(self, problems: Sequence[ConvolutionProblem], workspaces: Int64) -> Int64:
        """Return workspaces by convolution, bytes, those of products in place of what was asked.

        Args:
            problems: the convolutions.
            workspaces: what cuDNN asks for in each.
        """
        if self is OneByOne.AS_ASKED:
            return workspaces
        backward_only = self is OneByOne.PRODUCTS_IN_BACKWARD
        products = [
            is_matrix_product(problem) and not (backward_only and problem.kind == "forward")
            for problem in problems
        ]
        return np.where(products, PRODUCT_BYTES, workspaces)


_ASK = """
import ast, sys
from memplan.convolution import ConvolutionProblem
from memplan.device import catalogue
from memplan.device.cudnn import WorkspaceOracle
problem = ConvolutionProblem(**ast.literal_eval(sys.argv[1]))
print(WorkspaceOracle(catalogue.card(sys.argv[2])).bytes(problem))
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
