"""Every private name of PyTorch that the recorders lean on, and that this release has it."""

import ast
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses import fake_tensor
from torch.autograd import graph, profiler
from torch.cuda.amp import common
from torch.nn.modules import batchnorm
from torch.utils import _python_dispatch, _pytree, checkpoint, flop_counter

from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.recorder import Recorder

MEMPLAN = Path(__file__).parents[2] / "memplan"


def _node():
    return torch.ones(2, requires_grad=True).exp().grad_fn


# What is used, by the name it has in the source, and where this release keeps it.
PRIVATE = {
    "_allgather_base_": lambda: torch.ops.c10d._allgather_base_,
    "_apply": lambda: torch.nn.Module()._apply,
    "_buffers": lambda: torch.nn.Module()._buffers,
    "_C": lambda: torch._C,
    "_cdata": lambda: torch.ones(1).untyped_storage()._cdata,
    "_conv_determine_backend_memory_format": lambda: torch._C._conv_determine_backend_memory_format,
    "_ConvBackend": lambda: torch._C._ConvBackend,
    "_cuda_attach_out_of_memory_observer": lambda: torch._C._cuda_attach_out_of_memory_observer,
    "_cuda_clearCublasWorkspaces": lambda: torch._C._cuda_clearCublasWorkspaces,
    "_cuda_memoryStats": lambda: torch._C._cuda_memoryStats,
    "_cuda_setMemoryMetadata": lambda: torch._C._cuda_setMemoryMetadata,
    "_DisableTorchDispatch": lambda: torch._C._DisableTorchDispatch,
    "_dispatch_get_all_op_names": lambda: torch._C._dispatch_get_all_op_names,
    "_dispatch_has_kernel": lambda: torch._C._dispatch_has_kernel,
    "_dispatch_has_kernel_for_dispatch_key": lambda: torch._C._dispatch_has_kernel_for_dispatch_key,
    "_dispatch_keyset_full_after": lambda: torch._C._dispatch_keyset_full_after,
    "_expired": lambda: torch.UntypedStorage._expired,
    "_foreach_add_": lambda: torch._foreach_add_,
    "_foreach_lerp": lambda: torch._foreach_lerp,
    "_foreach_lerp_": lambda: torch._foreach_lerp_,
    "_foreach_mul_": lambda: torch._foreach_mul_,
    "_foreach_sign_": lambda: torch._foreach_sign_,
    "_free_weak_ref": lambda: torch.UntypedStorage._free_weak_ref,
    "_get_sequence_nr": lambda: torch.autograd._get_sequence_nr,
    "_handle": lambda: torch.ops.aten.exp.default._handle.redispatch_boxed,
    "_input_metadata": lambda: _node()._input_metadata,
    "_jit_get_all_schemas": lambda: torch._C._jit_get_all_schemas,
    "_lazy_call": lambda: torch.cuda._lazy_call,
    "_make_subclass": lambda: torch.Tensor._make_subclass,
    "_ops": lambda: torch._ops.OpOverload,
    "_parameters": lambda: torch.nn.Module()._parameters,
    "_record_memory_history": lambda: torch.cuda.memory._record_memory_history,
    "_schema": lambda: torch.ops.aten.exp.default._schema,
    "_select_conv_backend": lambda: torch._C._select_conv_backend,
    "_sequence_nr": lambda: _node()._sequence_nr,
    "_snapshot": lambda: torch.cuda.memory._snapshot,
    "_storage_Use_Count": lambda: torch._C._storage_Use_Count,
    "_use_count": lambda: torch.ones(1)._use_count,
    "_weak_ref": lambda: torch.ones(1).untyped_storage()._weak_ref,
}
# Modules and classes that are private, or public in name only.
IMPORTED = {
    "torch._subclasses.fake_tensor.DynamicOutputShapeException",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree.tree_flatten",
    "torch.utils.checkpoint._CheckpointFrame",
}
SNAPSHOTS = {"_dump_snapshot", "_record_memory_history"}  # named in texts for users


def _files():
    folders = [MEMPLAN / room for room in ("trace", "step", "recording")]
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return [path for path in files if not path.name.startswith("snapshot")]


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _used(tree):
    """Return the private attributes a file takes from objects other than its own `self`."""
    own = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_private(node.name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not _is_private(node.attr):
            continue
        base = ast.unparse(node.value)
        # Operators have public names in the dispatcher, whatever their first letter.
        if base not in {"self", "aten", "torch.ops.aten", "sys", "os"} and node.attr not in own:
            yield node.attr


def _imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if any(_is_private(part) for part in name.split(".")):
                    yield name


def test_every_private_attribute_in_use_is_named_here():
    """A new private name makes this test fail until it is named, and so checked, here."""
    used = {name for path in _files() for name in _used(ast.parse(path.read_text()))}

    assert set(PRIVATE) == used - {"_version"}


def test_every_private_import_is_named_here():
    """The same for modules and classes."""
    found = {name for path in _files() for name in _imported(ast.parse(path.read_text()))}

    assert found == IMPORTED


@pytest.mark.parametrize("name", PRIVATE)
def test_this_release_has_the_private_attribute(name):
    """Looking the name up succeeds."""
    assert PRIVATE[name]() is not None


def test_this_release_has_the_private_modules():
    """Each class and function is where the recorder imports it from."""
    assert issubclass(fake_tensor.FakeTensorMode, _python_dispatch.TorchDispatchMode)
    assert issubclass(fake_tensor.FakeTensor, torch.Tensor)
    assert issubclass(fake_tensor.DynamicOutputShapeException, Exception)
    assert issubclass(torch.nn.BatchNorm2d, batchnorm._BatchNorm)
    assert [1, 2] == _pytree.tree_flatten((1, [2]))[0]
    assert torch.ops.aten.convolution in flop_counter.flop_registry


def test_kernels_registered_for_backend_select_run_below_autograd_and_above_the_device():
    """A kernel for that key sees the call, can hand it on, and gradients flow as ever."""
    seen = []
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    redispatch = torch.ops.aten.expm1.default._handle.redispatch_boxed

    def kernel(keyset, tensor):
        seen.append(tensor.requires_grad)
        return redispatch(keyset & below, tensor)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("expm1", kernel, "BackendSelect", with_keyset=True)
    x = torch.zeros(2, requires_grad=True)
    x.expm1().sum().backward()
    library._destroy()

    assert 1 == len(seen)
    assert [1.0, 1.0] == x.grad.tolist()


def test_a_storage_keeps_its_identity_while_weakly_held():
    """The address of a freed storage's own object is not given to another one before that."""
    tensor = torch.ones(3)
    identity, weak = tensor.untyped_storage()._cdata, tensor.untyped_storage()._weak_ref()
    assert not torch.UntypedStorage._expired(weak)
    del tensor

    assert torch.UntypedStorage._expired(weak)
    assert identity not in {torch.ones(3).untyped_storage()._cdata for _ in range(100)}
    torch.UntypedStorage._free_weak_ref(weak)


def test_the_hooks_into_fake_mode_are_the_ones_the_recorder_overrides():
    """`dispatch` and `_should_skip_dynamo` keep their signatures."""
    mode = fake_tensor.FakeTensorMode

    assert ["self", "func", "types", "args", "kwargs"] == list(
        inspect.signature(mode.dispatch).parameters
    )
    assert inspect.ismethod(mode._should_skip_dynamo)
    assert "_should_skip_dynamo" in inspect.getsource(_python_dispatch.TorchDispatchMode)


def test_the_names_that_are_patched_exist():
    """Autocast and the scaler ask these; patching a name nobody asks would pass silently."""
    scaler = inspect.getsource(torch.amp.grad_scaler)

    assert callable(common.amp_definitely_not_available)
    assert "amp_definitely_not_available" in scaler
    assert callable(torch.cuda.is_bf16_supported)
    assert callable(profiler.record_function)
    assert "record_function" in inspect.getsource(torch.optim.Optimizer.profile_hook_step)


def test_use_counts_count_as_the_engine_walk_expects():
    """One reference to a tensor counts 1, and its storage 2 with the wrapper that asks."""
    tensor = torch.ones(2)
    storage = tensor.untyped_storage()

    assert 1 == tensor._use_count()
    assert 2 == torch._C._storage_Use_Count(storage._cdata)

    shared = tensor.view(2)

    assert 1 == shared._use_count()
    assert 2 < torch._C._storage_Use_Count(storage._cdata)


def test_checkpointing_recomputes_once_in_a_graph_group():
    """Inside `GraphExecGroup` two nodes of one region share one recomputation."""
    runs = []

    def region(x):
        runs.append(1)
        return x.exp().exp()

    out = checkpoint.checkpoint(region, torch.ones(2, requires_grad=True), use_reentrant=False)
    second = out.grad_fn
    first = second.next_functions[0][0]
    with checkpoint.GraphExecGroup(), torch.no_grad():
        first(second(torch.ones(2)))

    assert 2 == len(runs)


def test_sequence_numbers_grow_with_the_nodes():
    """The next number is the one that the next node gets."""
    number = torch.autograd._get_sequence_nr()

    assert number == _node()._sequence_nr()


def test_input_metadata_tells_shape_and_dtype():
    """A node knows what its output was."""
    (metadata,) = _node()._input_metadata

    assert ((2,), torch.float32) == (tuple(metadata.shape), metadata.dtype)
    assert hasattr(graph, "saved_tensors_hooks")


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_a_tensor_s_device_is_pytorch_s_own_answer(device):
    """Recorders answer in its place, inside a fake kernel too."""
    with fake_cuda() as mode:
        tensor = torch.empty(2, device=device)
        expected = [tensor.device]
        with fake_tensor.in_kernel_invocation_manager(mode):
            expected.append(tensor.device)
        with Recorder(DEVICE, mode):
            found = [tensor.device]
            with fake_tensor.in_kernel_invocation_manager(mode):
                found.append(tensor.device)

    assert [torch.device(device), torch.device("meta")] == expected == found
