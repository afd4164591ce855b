"""A convolution as the device's library sees it: shared by the recorder and the device model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["forward", "input_gradient", "weight_gradient"]
DType = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionProblem:
    """One cuDNN call: the shapes are those of the forward convolution, whatever the kind.

    `input` is `[n, c, *spatial]`, `weight` `[k, c / groups, *window]` with one to three spatial
    dimensions; `stride`, `padding` and `dilation` have one number for each of them.
    `channels_last` is the layout of all three tensors, gradients included. `allow_tf32` is
    `torch.backends.cudnn.allow_tf32` (True by default) and counts for float32 only;
    `deterministic` is `torch.backends.cudnn.deterministic`, or that all algorithms must be
    (`torch.use_deterministic_algorithms`).

    Source: `filterEngineConfigs` in aten/src/ATen/native/cudnn/Conv_v8.cpp for what the two rule
    out, and `ConvParams` in aten/src/ATen/native/Convolution.cpp for where they come from.
    """

    kind: Kind
    dtype: DType
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False
    allow_tf32: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Take lists for tuples, and check that the shapes make a convolution."""
        for name in ("input", "weight", "stride", "padding", "dilation"):
            object.__setattr__(self, name, tuple(int(number) for number in getattr(self, name)))
        rank = len(self.input) - 2
        assert rank in (1, 2, 3), self
        assert len(self.weight) == rank + 2, self
        assert {len(self.stride), len(self.padding), len(self.dilation)} == {rank}, self
        assert self.weight[1] * self.groups == self.input[1], self
        assert min(self.output) > 0, self

    @property
    def output(self) -> tuple[int, ...]:
        """The forward convolution's output shape, `[n, k, *spatial]`."""
        spatial = (
            (size + 2 * pad - dilation * (window - 1) - 1) // stride + 1
            for size, window, stride, pad, dilation in zip(
                self.input[2:],
                self.weight[2:],
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return (self.input[0], self.weight[0], *spatial)

    def with_batch(self, batch: int) -> ConvolutionProblem:
        """Return the same convolution over another number of images."""
        return replace(self, input=(batch, *self.input[1:]))

    def as_planned(self) -> ConvolutionProblem:
        """Return the problem as PyTorch hands it over: 1-d as 2-d, no setting that says nothing.

        Source: `ConvParams::view1d_as_2d` in aten/src/ATen/native/Convolution.cpp.
        """
        problem = self if self.dtype == "float32" else replace(self, allow_tf32=True)
        if len(problem.stride) > 1:
            return problem
        return replace(
            problem,
            input=(*self.input[:2], 1, self.input[2]),
            weight=(*self.weight[:2], 1, self.weight[2]),
            stride=(1, *self.stride),
            padding=(0, *self.padding),
            dilation=(1, *self.dilation),
        )

    def key(self) -> str:
        """Return a text that is the same for problems cuDNN cannot tell apart."""
        one = self.as_planned()
        shapes = (one.input, one.weight, one.stride, one.padding, one.dilation)
        flags = (one.channels_last, one.allow_tf32, one.deterministic)
        parts = [one.kind, one.dtype, *("x".join(map(str, shape)) for shape in shapes)]
        return " ".join([*parts, str(one.groups), "".join(str(int(flag)) for flag in flags)])
