"""What the workspaces of 1x1 convolutions leave open.

A 1x1 convolution of stride 1 is a matrix product, and cuDNN has an engine that gives it to
cuBLASLt. The plan's workspace is then what cuBLASLt's algorithm asks for, at most the 4 MiB that
cuDNN allows, and 256 bytes to align it; how much of that it asks only a card can tell. cuDNN is
asked as if it were all (`memplan.device.cudnn_asking`); were it nothing, the workspace would be 0.

Source: cuDNN 9.10 and 9.19 asked on phantom cards whose cuBLASLt answers 0, 1 MiB and 4 MiB; never
for strides above 1 or larger windows. Some products carry scratch of cuDNN's own beside it (one in
seven to one in five of those tried); they keep what was asked, which is 4 MiB more at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np

from memplan.convolution import ConvolutionProblem
from memplan.tape import Int64
from memplan.units import MIB

PRODUCT_BYTES = 4 * MIB + 256


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
    """Which workspace cuBLASLt is taken to want for 1x1 convolutions."""

    AS_ASKED = "as asked"
    WITHOUT_WORKSPACE = "without workspace"

    def applied(self, problems: Sequence[ConvolutionProblem], workspaces: Int64) -> Int64:
        """Return workspaces by convolution, bytes, with 0 for products that need none.

        Args:
            problems: the convolutions.
            workspaces: what cuDNN asks for in each.
        """
        if self is OneByOne.AS_ASKED:
            return workspaces
        products = np.array([is_matrix_product(problem) for problem in problems], dtype=bool)
        return np.where(products & (workspaces == PRODUCT_BYTES), 0, workspaces)
