"""What the tests let a child process do on its phantom card."""

import ctypes
import itertools
import os
import resource
import time
from pathlib import Path

from memplan.convolution import ConvolutionProblem
from memplan.device import cudnn_asking, cudnn_plans
from memplan.device.cudnn_descriptors import Descriptors, open_compilers, open_sublibraries
from memplan.errors import BadInputError


def card_and_peak(*, count):
    import torch

    tensor = torch.zeros(count, device="cuda")
    peak = torch.cuda.memory_stats()["allocated_bytes.all.peak"]
    return [torch.cuda.get_device_capability(), tensor.numel(), peak]


def mark(*, out):
    print("a word that is no answer")
    out.write_text(os.environ["MEMPLAN_MARK"])


def crash():
    ctypes.string_at(0)


def hang():
    time.sleep(3600)


def refuse(*, name):
    if name:
        raise BadInputError(f"No such thing as {name!r}.")
    raise ZeroDivisionError("division by zero")


def address_space_limit() -> int:
    """Return the bytes of address space that this process may take, -1 where there is no limit."""
    return resource.getrlimit(resource.RLIMIT_AS)[0]


def answer_within(*, more_bytes, **arguments):
    """Return what cuDNN answers where the process may take no more than so many further bytes."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, hard))
    return cudnn_asking.answer(**arguments)


def stated_and_built(*, device, problems):
    """Return of the best configurations whether cuDNN compiles, and bytes stated and as built."""
    open_sublibraries()
    open_compilers()
    on = cudnn_plans.device(device)
    return [one for problem in problems for one in _best(ConvolutionProblem(**problem), on)]


def _best(problem, on):
    with Descriptors() as descriptors:
        heuristics = cudnn_plans._heuristics(descriptors, problem, on, cudnn_plans.Mode.INSTANT)
        return [
            [
                cudnn_plans._is_compiled(descriptors, config),
                cudnn_plans._stated_bytes(descriptors, config),
                cudnn_plans._built_bytes(descriptors, config, on),
            ]
            for config in itertools.islice(cudnn_plans._configs(descriptors, heuristics), 4)
        ]
