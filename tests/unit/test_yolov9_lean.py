"""Lean blocks train as plain ones do, keep less, and go together with recomputation."""

from __future__ import annotations

import copy
import gc
from functools import cache

import numpy as np
import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.rebuild import Memo
from memplan_models.yolov9.workload import YoloV9
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.device import catalogue
from memplan.device.replay import replay
from memplan.errors import UsageError
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep
from memplan.trace.record import record

SIDE = 64
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _workload(cfg):
    return YoloV9(cfg, image_size=SIDE, num_classes=3, objects_per_image=3)


@cache
def _network(cfg):
    torch.manual_seed(0)
    return _workload(cfg).build_model()


def _batch(workload, micro_batch_size=2):
    generator = np.random.default_rng(1)
    batch = workload.make_batch(micro_batch_size)
    side = generator.integers(0, 256, batch["images"].shape, dtype=np.uint8)
    batch["images"] = torch.from_numpy(side)
    return batch


def _kept_bytes(model, run):
    """Return bytes of activations that autograd keeps while `run` goes forward, and its result."""
    storages = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(size for at, size in storages.items() if at not in weights), result


def _trained(cfg, **settings):
    """Return loss parts, gradients, buffers and bytes kept of one micro-batch."""
    workload = _workload(cfg)
    settings = StepSpec(**{"precision": "fp32", **settings})
    step = TrainingStep(workload, settings, CPU, model=copy.deepcopy(_network(cfg)))
    batch = step.training_batch(_batch(workload))
    with step.autocast():
        kept, (loss, parts) = _kept_bytes(
            step.model, lambda: workload.compute_loss(step.model, batch)
        )
    loss.backward()
    gradients = {n: p.grad for n, p in step.model.named_parameters() if p.grad is not None}
    return parts, gradients, dict(step.model.named_buffers()), kept


def _distance(one, other):
    """Return how far gradients are apart, relative to their size, all together."""
    assert one.keys() == other.keys()
    apart = sum((one[name] - other[name]).double().square().sum() for name in one)
    size = sum(other[name].double().square().sum() for name in one)
    return float((apart / size).sqrt())


@pytest.mark.parametrize(
    ("cfg", "precision", "tolerance"),
    [
        ("yolov9-t", "fp32", 1e-5),
        ("yolov9-t", "amp-bf16", 3e-2),
        ("gelan-t", "fp32", 1e-5),
        ("yolov9-m", "fp32", 1e-5),
        pytest.param("yolov9-e", "fp32", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_a_lean_step_is_the_plain_step(cfg, precision, tolerance):
    """Loss and statistics are equal to the bit, gradients but for rounding; less is kept."""
    plain_parts, plain_gradients, plain_buffers, plain_kept = _trained(cfg, precision=precision)
    parts, gradients, buffers, kept = _trained(cfg, precision=precision, lean=True)

    assert torch.equal(plain_parts, parts)
    assert all(torch.equal(plain_buffers[name], buffers[name]) for name in plain_buffers)
    assert _distance(gradients, plain_gradients) < tolerance
    # Under autocast the weights' casts, which stay, are a good part at this image size.
    assert kept < (0.67 if precision == "fp32" else 0.75) * plain_kept


@cache
def _lean_alone(cfg):
    return _trained(cfg, lean=True)


@pytest.mark.parametrize(
    ("cfg", "chosen"),
    [
        ("yolov9-t", ("model.2",)),
        ("yolov9-t", ("model.3", "model.4.cv2")),
        ("yolov9-t", ("model.15", "model.18")),
        ("yolov9-t", "all"),
        pytest.param("yolov9-e", ("model.3", "model.20"), marks=pytest.mark.slow),
        pytest.param("yolov9-e", "all", marks=pytest.mark.slow),
    ],
)
def test_lean_blocks_recompute(cfg, chosen):
    """Any choice of blocks gives the loss, statistics and gradients of lean blocks alone."""
    everything = tuple(_workload(cfg).recompute_blocks(_network(cfg)))
    recompute = everything if chosen == "all" else chosen
    plain_parts, plain_gradients, plain_buffers, plain_kept = _lean_alone(cfg)
    parts, gradients, buffers, kept = _trained(cfg, lean=True, recompute=recompute)

    assert torch.equal(plain_parts, parts)
    assert all(torch.equal(plain_buffers[name], buffers[name]) for name in plain_buffers)
    assert _distance(gradients, plain_gradients) < 1e-5
    assert kept < plain_kept


@pytest.mark.parametrize("cfg", ["yolov9-t", "yolov9-e"])
def test_every_block_alone_recomputes_under_lean(cfg):
    """Whichever block it is, what it takes in has the recipe of a block that is not recomputed."""
    parts, gradients, _, _ = _lean_alone(cfg)
    every = _workload(cfg).recompute_blocks(_network(cfg))
    for path in every if cfg == "yolov9-t" else every[1::5]:
        mine, ours, _, _ = _trained(cfg, lean=True, recompute=(path,))

        assert torch.equal(parts, mine), path
        assert _distance(ours, gradients) < 1e-5, path


def test_recorded_memory_is_less():
    """On a card too, activations at the peak are at most two thirds; the optimizer is as before."""
    card = catalogue.card("rtx-3090")
    workload = YoloV9("yolov9-t", image_size=320, num_classes=3)
    plain, lean = (replay(record(workload, 8, StepSpec(lean=one)), card) for one in (False, True))

    assert lean.allocated_peak_bytes < 0.67 * plain.allocated_peak_bytes


def test_frozen_layers_stay_lean_and_still():
    """Layers without gradients keep their weights, and the rest has the plain gradients."""
    results = []
    for lean in (False, True):
        workload = _workload("yolov9-t")
        model = copy.deepcopy(_network("yolov9-t"))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not name.startswith(("model.0.", "model.1.", "model.2."))
        settings = StepSpec(precision="fp32", lean=lean)
        step = TrainingStep(workload, settings, CPU, model=model)
        step.accumulate(step.training_batch(_batch(workload)))
        results.append({n: p.grad for n, p in step.model.named_parameters() if p.grad is not None})

    assert not any(name.startswith("model.1.") for name in results[1])
    assert _distance(results[1], results[0]) < 1e-5


class _Norms(TorchDispatchMode):
    """Counts normalisations with statistics that are known already."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.native_batch_norm.default and not args[5]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cfg", ["yolov9-t", "yolov9-c", "gelan-c"])
def test_backward_makes_each_map_once_and_leaves_none(cfg):
    """One normalisation a norm for the map, at most half as many for derivatives; none is kept."""
    workload, model = _workload(cfg), copy.deepcopy(_network(cfg))
    workload.make_lean(model)
    loss, _ = workload.compute_loss(model, workload.prepare(_batch(workload)))
    memos = [one for one in gc.get_objects() if type(one) is Memo and one.num_uses]

    with _Norms() as norms:
        loss.backward()

    num_norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    assert num_norms <= norms.count < 1.5 * num_norms
    assert memos
    assert all((0, None, None) == (m.num_uses, m.value, m.total) for m in memos)


def test_evaluation_is_untouched():
    """In evaluation a lean network computes what the plain one does."""
    plain = copy.deepcopy(_network("yolov9-t")).eval()
    lean = copy.deepcopy(plain)
    _workload("yolov9-t").make_lean(lean)
    images = torch.rand(1, 3, SIDE, SIDE)

    with torch.no_grad():
        assert torch.equal(plain(images)[0][0], lean(images)[0][0])


def test_an_average_and_a_copy_keep_their_shape():
    """A lean network has the plain one's entries, so checkpoints are exchanged freely."""
    lean = copy.deepcopy(_network("yolov9-t"))
    _workload("yolov9-t").make_lean(lean)

    assert list(_network("yolov9-t").state_dict()) == list(lean.state_dict())
    assert list(copy.deepcopy(lean).state_dict()) == list(lean.state_dict())


def test_a_network_that_cannot_be_lean_says_so():
    """Batch norm over several devices has no lean form."""
    net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(yolov9.build("yolov9-t", nc=3))
    with pytest.raises(UsageError, match="--lean: no block of yolov9-t can be lean"):
        _workload("yolov9-t").make_lean(net)


def _stepped(recompute=(), *, lean, live):
    """Return two steps' gradients and loss, the state_dict's keys and what a hook saw, in the end.

    Args:
        recompute: from the start.
        lean: whether blocks are lean, recomputed beside it in the end.
        live: whether they become so after the first step.
    """
    workload, seen = _workload("yolov9-t"), []
    wanted = StepSpec(precision="fp32", lean=lean, recompute=(*recompute, "model.18"))
    start = StepSpec(precision="fp32", recompute=recompute) if live else wanted
    step = TrainingStep(workload, start, CPU, model=copy.deepcopy(_network("yolov9-t")))
    step.model.get_submodule("model.3").register_forward_hook(lambda *_: seen.append(1))
    parameters = list(step.model.parameters())
    step.accumulate(step.training_batch(_batch(workload)))
    if live:
        step.lighten(wanted)
    _, parts = step.accumulate(step.training_batch(_batch(workload)))
    assert wanted == step.spec
    assert all(one is other for one, other in zip(parameters, step.model.parameters(), strict=True))
    gradients = {n: p.grad for n, p in step.model.named_parameters() if p.grad is not None}
    return parts, gradients, step.model.state_dict(), len(seen)


@pytest.mark.parametrize("recompute", [(), ("model.2", "model.4")])
def test_blocks_become_lean_between_two_steps(recompute):
    """Loss, statistics, keys and hooks stay; blocks recomputed before meet lean neighbours."""
    parts, gradients, state, calls = _stepped(recompute, lean=True, live=True)
    ours, theirs, plain, expected_calls = _stepped(recompute, lean=False, live=False)

    assert torch.equal(ours, parts)
    assert list(plain) == list(state)
    assert all(torch.equal(plain[name], state[name]) for name in plain)
    assert _distance(gradients, theirs) < 1e-5
    assert expected_calls == calls


def test_less_is_kept_from_cheap_to_dear_until_nothing_is_left():
    """Lean blocks first, then recomputation; a network that cannot be lean goes on to that."""
    levers = []
    for model in (copy.deepcopy(_network("yolov9-t")), yolov9.build("yolov9-t", nc=3)):
        step = TrainingStep(_workload("yolov9-t"), StepSpec(precision="fp32"), CPU, model=model)
        if levers:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(step.model)
        levers.append([step.lighten() for _ in range(3)])

    assert [["lean", "recompute", ""], ["recompute", "", ""]] == levers
