"""What DDP adds to a process's life, beside PyTorch's own reducer on the processor."""

import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trace_toy import Counted

from memplan import tape as tapes
from memplan.device.distributed import (
    DataParallel,
    ModelTensors,
    assign_buckets,
    first_buckets,
    gradients_in_order,
    of_other_rank,
    rebuilt_buckets,
    with_data_parallel,
)
from memplan.device.life import DeviceBytes, Life, Program
from memplan.errors import UsageError
from memplan.spec import StepSpec
from memplan.trace.build import build
from memplan.trace.record import record
from memplan.units import MIB

LIMITS = {"one": [1 << 62], "first and others": [MIB, 25 * MIB], "broadcast": [250 * MIB]}


class Wide(Counted):
    """Layers whose gradients fill three buckets: 1 MiB and then 25 MiB."""

    name = "wide"
    image_size = 8

    def build_model(self):
        """Return linear layers of 16 MiB each after a small one."""
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(192, 2048),
            torch.nn.BatchNorm1d(2048),
            torch.nn.Linear(2048, 2048),
            torch.nn.Linear(2048, 2048),
            torch.nn.Linear(2048, 200),
        )


@pytest.fixture(scope="module")
def _alone(tmp_path_factory):
    """Make this process a group of one over gloo."""
    path = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", store=dist.FileStore(str(path), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("seed", range(4))
def test_buckets_are_assigned_as_pytorch_does(limits, seed):
    """Random sizes and two dtypes fall into the buckets that PyTorch's own routine makes."""
    chance = np.random.default_rng(seed)
    kinds = chance.choice(["torch.float32", "torch.float16"], 60).tolist()
    shapes = chance.integers(1, 4_000_000, 60).tolist()
    tensors = [
        torch.empty(n, dtype=getattr(torch, kind[6:]))
        for n, kind in zip(shapes, kinds, strict=True)
    ]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, limits, [])

    ours = assign_buckets([t.nbytes for t in tensors], kinds, limits, in_order=False)

    assert theirs == ours


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("kind", [Wide, Counted])
def test_first_and_rebuilt_buckets_are_the_reducer_s(kind):
    """Bucket bytes before and after the first step equal what a real DDP logs of itself."""
    workload = kind()
    tape = record(workload, 2, StepSpec(precision="fp32"))
    tensors = ModelTensors.of(build(workload))
    model = DistributedDataParallel(workload.build_model())
    batch = workload.make_batch(2)
    for _ in range(3):
        workload.compute_loss(model, batch)[0].backward()
    logged = model._get_ddp_logging_data()

    _, ready = gradients_in_order(tape)

    assert _numbers(logged["bucket_sizes"]) == first_buckets(tensors, DataParallel(devices=2))
    assert _numbers(logged["rebuilt_bucket_sizes"]) == rebuilt_buckets(ready)


@pytest.mark.usefixtures("_alone")
def test_looking_for_unused_parameters_keeps_the_first_buckets():
    """The buckets are then those of registration, the first layers' alone at the end."""
    workload = Wide()
    model = DistributedDataParallel(workload.build_model(), find_unused_parameters=True)
    workload.compute_loss(model, workload.make_batch(2))[0].backward()
    workload.compute_loss(model, workload.make_batch(2))[0].backward()
    logged = model._get_ddp_logging_data()
    settings = DataParallel(devices=2, find_unused_parameters=True)
    tensors = ModelTensors.of(build(workload))
    tape = with_data_parallel(record(workload, 2), tensors, settings)

    assert _numbers(logged["bucket_sizes"]) == first_buckets(tensors, settings)
    assert tapes.SECTIONS.index("bucket_rebuild") not in tape.events.section


def _live(tape, life=None, categories=tapes.CATEGORIES):
    program = Program(tape, life or Life(num_steps=2))
    sizes = program.sizes(tape.events.requested_bytes, DeviceBytes.none(tape))
    rows = [tapes.CATEGORY_INDEX[name] for name in categories]
    return program, program.live_by_category(sizes)[rows].sum(axis=0)


@pytest.mark.parametrize("accumulates", [False, True])
def test_buckets_are_as_large_as_all_gradients(accumulates):
    """At every moment after the build, what DDP adds is the gradients' bytes in buckets."""
    workload = Wide()
    tape = record(workload, 2, StepSpec(precision="fp32"))
    tensors = ModelTensors.of(build(workload))
    life = Life(accumulates=accumulates, num_steps=2)
    parallel = with_data_parallel(tape, tensors, DataParallel(devices=2))
    expected = sum(one.num_bytes for one in tensors.parameters)

    _, alone = _live(tape, life)
    _, together = _live(parallel, life)

    assert expected == pytest.approx(together[-1] - alone[-1], abs=4 * 512)
    # The peak of this step lies where gradients meet the optimizer.
    assert expected == pytest.approx(together.max() - alone.max(), abs=4 * 512)


def test_buckets_are_rebuilt_once_before_the_second_forward():
    """The first bucket goes and three come, after the first step or within its accumulation."""
    workload = Wide()
    tensors = ModelTensors.of(build(workload))
    parallel = with_data_parallel(record(workload, 2), tensors, DataParallel(devices=2))
    section = tapes.SECTIONS.index("bucket_rebuild")

    for accumulates, period in ((False, "steady_step"), (True, "accumulation_step")):
        program = Program(parallel, Life(accumulates=accumulates))
        rebuilds = np.flatnonzero(parallel.events.section[program.rows] == section)
        kinds = program.kinds[rebuilds].tolist()

        assert [0, 0, 1, 1, 1, 0, 0, 0] == kinds
        assert tapes.PERIODS.index(period) == program.periods[rebuilds[0]]


def test_gradients_as_views_cost_nothing_beside_the_buckets():
    """With gradient_as_bucket_view a gradient is freed once it lies in its bucket."""
    workload = Wide()
    tape = record(workload, 2, StepSpec(precision="fp32"))
    tensors = ModelTensors.of(build(workload))
    gradients = sum(one.num_bytes for one in tensors.parameters)
    for life in (Life(num_steps=2), Life(num_steps=2, accumulates=True)):
        settings = DataParallel(devices=2, gradient_as_bucket_view=True)
        views = with_data_parallel(tape, tensors, settings)

        _, with_views = _live(views, life, ("gradient",))

        largest = max(one.num_bytes for one in tensors.parameters)
        # A layer's weight and bias come together.
        assert gradients + largest == pytest.approx(with_views.max(), abs=32 * 512)


def test_buffers_are_broadcast_through_two_flat_copies():
    """Each forward flattens float statistics and the int64 counter apart: one is sent as it is."""
    workload = Counted()
    tape = record(workload, 2)
    tensors = ModelTensors.of(build(workload))
    parallel = with_data_parallel(tape, tensors, DataParallel(devices=2))
    silent = with_data_parallel(tape, tensors, DataParallel(devices=2, broadcast_buffers=False))
    name = parallel.operator_names.index("ddp.broadcast")
    of_step = parallel.events.section == tapes.SECTIONS.index("micro_batch")
    ours = of_step & (parallel.operators.name[parallel.events.operator] == name)
    allocated = parallel.events.requested_bytes[ours & (parallel.events.kind == tapes.ALLOCATE)]

    # Mean and variance of four channels; a single int64 needs no flat copy.
    assert [2 * 4 * 4] == allocated.tolist()
    of_step = silent.events.section == tapes.SECTIONS.index("micro_batch")
    assert np.count_nonzero(of_step) == np.count_nonzero(
        tape.events.section == tapes.SECTIONS.index("micro_batch")
    )


def test_channels_last_weights_are_copied_to_be_sent():
    """`contiguous()` copies the one 3x3 weight with several channels in and out, and the other."""
    workload = Counted()
    settings = StepSpec(memory_format="channels-last")
    tensors = ModelTensors.of(build(workload))
    parallel = with_data_parallel(record(workload, 2, settings), tensors, DataParallel(devices=2))
    name = parallel.operator_names.index("ddp.flatten")
    ours = parallel.operators.name[parallel.events.operator] == name
    sizes = parallel.events.requested_bytes[ours & (parallel.events.kind == tapes.ALLOCATE)]

    assert [4 * 3 * 9 * 4, 8 * 4 * 9 * 4] == sizes.tolist()


def test_synchronized_batch_norm_gathers_statistics_of_all_cards():
    """World size times (2 channels + 1) float32 are gathered around each batch norm."""
    workload = Counted()
    tensors = ModelTensors.of(build(workload))
    settings = DataParallel(devices=8, sync_batch_norm=True)
    parallel = with_data_parallel(record(workload, 2), tensors, settings)
    name = parallel.operator_names.index("ddp.sync_batch_norm")
    ours = parallel.operators.name[parallel.events.operator] == name
    sizes = parallel.events.requested_bytes[ours & (parallel.events.kind == tapes.ALLOCATE)]

    assert 8 * (2 * 4 + 1) * 4 in sizes
    kinds = parallel.events.kind[ours]
    assert np.count_nonzero(kinds == tapes.FREE) == np.count_nonzero(kinds == tapes.ALLOCATE)


def test_other_ranks_keep_no_average_and_do_not_validate():
    """Without average, validation and checkpoint the last bytes held fall by the average's."""
    workload = Counted(keeps_average=True, validates=True)
    tape = record(workload, 2, StepSpec(precision="fp32"))
    other = of_other_rank(tape)
    model = build(workload)
    average = sum(-(-t.nbytes // 512) * 512 for t in (*model.parameters(), *model.buffers()))

    _, first = _live(tape)
    program, rest = _live(other)

    assert average == first[-1] - rest[-1]
    assert tapes.PERIODS.index("validation") not in program.periods


def test_one_device_needs_no_ddp():
    """Asking for DDP over one card is a mistake that is named."""
    with pytest.raises(UsageError, match="--devices 1"):
        DataParallel(devices=1)
