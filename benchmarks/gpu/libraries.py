"""What cuDNN asks of the allocator, operator by operator, on a real card.

Each distinct convolution of a network runs alone with the allocator's history on: what it takes
and gives back inside the operator is workspace (and copies PyTorch makes first). On a CPU the
same operators run and nothing is learned of workspace.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.predict import PredictedLife, distinct
from memplan.convolution import ConvolutionProblem
from memplan.trace.listener import Listener
from memplan.trace.measure import OutsideGauge

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_MASKS = {"input_gradient": [True, False, False], "weight_gradient": [False, True, False]}
# Channels and sides of a YOLOv9 network at 640 px, from its first layer to its last.
_NORM_SHAPES = ((32, 320), (64, 160), (128, 80), (256, 40), (512, 20), (64, 80), (128, 20))


def convolutions(job: Job) -> dict[str, Any]:
    """Return every distinct convolution of the case's network with what it took."""
    device = torch.device(job.device)
    gauge = OutsideGauge(None if device.type != "cuda" else device.index or 0)
    problems = distinct(PredictedLife.of(job.case, job.card).tape.convolutions)
    listener = Listener(device)
    rows = []
    for problem in problems:
        call = _prepared(problem, device)
        with torch.backends.cudnn.flags(
            benchmark=job.case.cudnn_benchmark,
            deterministic=problem.deterministic,
            allow_tf32=problem.allow_tf32,
        ):
            call()  # the first call also loads code and makes the handle's own buffers
            listener.listen()
            result = call()
            heard = listener.heard()
        rows.append({"problem": asdict(problem), "heard": heard})
        del result, call
    return {"rows": rows, "outside_bytes": gauge.read()}


def _prepared(problem: ConvolutionProblem, device: torch.device) -> Any:
    """Return the call that is the problem, its tensors at hand."""
    rank = len(problem.stride)
    last = torch.channels_last_3d if rank == 3 else torch.channels_last
    layout = last if problem.channels_last and rank > 1 else torch.contiguous_format

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        made = torch.rand(shape, device=device).to(_DTYPES[problem.dtype])
        return made.contiguous(memory_format=layout)

    images, weight = tensor(problem.input), tensor(problem.weight)
    places = [list(problem.stride), list(problem.padding), list(problem.dilation)]
    rest = (*places, False, [0] * rank, problem.groups)
    if problem.kind == "forward":
        return lambda: torch.ops.aten.convolution.default(images, weight, None, *rest)
    gradient, mask = tensor(problem.output), _MASKS[problem.kind]
    return lambda: torch.ops.aten.convolution_backward.default(
        gradient, images, weight, None, *rest, mask
    )


def batch_norms(job: Job) -> dict[str, Any]:
    """Return what cuDNN's batch norm reserves and takes, forward and backward, by shape."""
    device = torch.device(job.device)
    gauge = OutsideGauge(None if device.type != "cuda" else device.index or 0)
    listener = Listener(device)
    rows = []
    for channels, side in _NORM_SHAPES:
        for dtype in (torch.float16, torch.float32):
            for layout in (torch.contiguous_format, torch.channels_last):
                shape = (job.case.micro_batch_size, channels, side, side)
                shape = shape if device.type == "cuda" else (1, channels, 8, 8)
                images = torch.rand(shape, device=device).to(dtype)
                images = images.contiguous(memory_format=layout)
                rows.append(
                    {
                        "shape": list(shape),
                        "dtype": str(dtype).removeprefix("torch."),
                        "channels_last": layout is torch.channels_last,
                        **_batch_norm(images, listener),
                    }
                )
    return {"rows": rows, "outside_bytes": gauge.read()}


def _batch_norm(images: torch.Tensor, listener: Listener) -> dict[str, Any]:
    channels = images.shape[1]
    ones, zeros = (torch.full((channels,), value, device=images.device) for value in (1.0, 0.0))
    if not images.is_cuda:
        torch.nn.functional.batch_norm(images.float(), zeros, ones, ones, zeros, training=True)
        return {"reserve_bytes": None, "forward": None, "backward": None}
    arguments = (images, ones, zeros, zeros.clone(), ones.clone(), True, 0.03, 1e-3)
    torch.ops.aten.cudnn_batch_norm.default(*arguments)
    listener.listen()
    output, mean, variance, reserve = torch.ops.aten.cudnn_batch_norm.default(*arguments)
    forward = listener.heard()
    listener.listen()
    torch.ops.aten.cudnn_batch_norm_backward.default(
        images, output, ones, zeros, ones, mean, variance, 1e-3, reserve
    )
    return {"reserve_bytes": reserve.numel(), "forward": forward, "backward": listener.heard()}
