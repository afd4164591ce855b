"""Backward without a device: autograd's graph walked from Python in the engine's order.

PyTorch's C++ engine asks the CUDA driver for a context before it runs a CUDA graph. Everything
else it does can be done from Python: nodes run highest sequence number first, partial gradients
are summed (in place where the engine would), each gradient is reduced and cast to what its
consumer declared, and a node's saved tensors go as soon as it has run.

Source: torch/csrc/autograd/{engine,input_buffer}.cpp and functions/accumulate_grad.h, PyTorch 2.11.

Limits: tensor hooks and hooks on nodes are not called; sparse gradients are summed out of place.
"""

from __future__ import annotations

import heapq
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import checkpoint
from torch.utils.checkpoint import GraphExecGroup, _CheckpointFrame

Node = Any  # torch.autograd.graph.Node, and Python-defined functions which only resemble it


class _Saved:
    """What the graph holds in a saved tensor's place: it dies with the graph, or is emptied."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor: torch.Tensor | None = tensor


class SavedTensors:
    """Holds what forward saved for backward, and lets go of it node by node.

    Used as a pair of saved-tensor hooks. The graph holds the only reference, as on a device, so
    that a part of it which nothing leads to any more lets go at once.
    """

    def __init__(self, on_save: Callable[[torch.Tensor], None]) -> None:
        self._on_save = on_save
        self._all: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self._used: list[_Saved] = []
        self._inputs: dict[_CheckpointFrame, list[_Saved]] = {}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context in which a forward pass saves into this table."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        self._on_save(tensor)
        # A node that holds its own result, and by that itself, would never die.
        saved = _Saved(tensor.detach() if _is_own_result(tensor) else tensor)
        self._all.add(saved)
        return saved

    def _unpack(self, saved: _Saved) -> torch.Tensor:
        assert saved.tensor is not None
        section = _recomputed_section()
        if section is None:
            self._used.append(saved)
        else:
            self._inputs.setdefault(section, []).append(saved)
        return saved.tensor

    def __len__(self) -> int:
        """How many tensors are held."""
        return sum(saved.tensor is not None for saved in self._all)

    def release_used(self) -> None:
        """Drop what the node that just ran has unpacked, and the inputs of sections it ends.

        A recomputed section holds its inputs until the last of its nodes has run.
        """
        for section in [one for one in self._inputs if _is_over(one)]:
            self._used += self._inputs.pop(section)
        for saved in self._used:
            saved.tensor = None
        self._used.clear()

    def clear(self) -> None:
        """Drop everything, as when the graph dies."""
        self._inputs.clear()
        self.release_used()
        for saved in self._all:
            saved.tensor = None


def _is_own_result(tensor: torch.Tensor) -> bool:
    """Return whether the node that is being made, the youngest, saves what it returns."""
    node = tensor.grad_fn
    youngest = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
    return node is not None and bool(node._sequence_nr() == youngest)


def _recomputed_section() -> _CheckpointFrame | None:
    """Return the section whose inputs are unpacked to run it again, if that is who asks."""
    asking = sys._getframe(2)
    if asking.f_code.co_filename != checkpoint.__file__:
        return None
    section = asking.f_locals.get("frame")
    return section if isinstance(section, _CheckpointFrame) else None


def _is_over(section: _CheckpointFrame) -> bool:
    """Return whether every tensor that a section has made again was handed out."""
    holders = (holder() for holder in section.weak_holders)
    return all(
        handle is None
        for holder in holders
        if holder is not None
        for handle in holder.handles.values()
    )


def _next_edges(node: Node) -> Iterator[tuple[Node, int]]:
    return (edge for edge in node.next_functions if edge[0] is not None)


def _count_dependencies(root: Node) -> dict[Node, int]:
    counts = {root: 0}
    stack = [root]
    while stack:
        for successor, _ in _next_edges(stack.pop()):
            if successor not in counts:
                counts[successor] = 0
                stack.append(successor)
            counts[successor] += 1
    return counts


def _conform(gradient: torch.Tensor, node: Node, index: int) -> torch.Tensor:
    """Reduce and cast a gradient to the input that `node` declared in forward."""
    metadata = node._input_metadata[index]
    if gradient.shape != torch.Size(metadata.shape):  # the binding gives a list
        gradient = gradient.sum_to_size(metadata.shape)
    if gradient.dtype != metadata.dtype:
        gradient = gradient.to(metadata.dtype)
    return gradient


def _is_unshared(tensor: torch.Tensor) -> bool:
    """Return whether nobody but the caller's slot holds this tensor or its memory.

    The binding of `_use_count` and of the storage's wrapper each hold one reference themselves.
    """
    storage = tensor.untyped_storage()
    alone = tensor._use_count() <= 1  # type: ignore[attr-defined]
    return alone and torch._C._storage_Use_Count(storage._cdata) <= 2


class _InputBuffers:
    """Gradients on their way to nodes that are not yet ready."""

    def __init__(self) -> None:
        self._slots: dict[Node, list[torch.Tensor | None]] = {}

    def add(self, node: Node, index: int, gradient: torch.Tensor) -> None:
        slots = self._slots.setdefault(node, [None] * len(node._input_metadata))
        present = slots[index]
        if present is None:
            slots[index] = gradient
        elif present.layout is torch.strided and _is_unshared(present):
            present.add_(gradient)
        else:
            slots[index] = present + gradient

    def pop(self, node: Node) -> list[torch.Tensor | None]:
        return self._slots.pop(node, [None] * len(node._input_metadata))


def _obeys_layout(gradient: torch.Tensor, variable: torch.Tensor) -> bool:
    pairs = zip(gradient.stride(), variable.stride(), variable.shape, strict=True)
    return all(mine == theirs for mine, theirs, side in pairs if side != 1)


def _accumulate(variable: torch.Tensor, gradient: torch.Tensor, *, unshared: bool) -> bool:
    """Give a leaf its gradient: taken over when possible, copied in its layout, or added.

    Returns:
        Whether it was copied.
    """
    if variable.grad is not None:
        variable.grad.add_(gradient)
        return False
    if unshared and _obeys_layout(gradient, variable):
        variable.grad = gradient.detach()
        return False
    variable.grad = torch.empty_strided(
        variable.shape, variable.stride(), dtype=gradient.dtype, device=gradient.device
    ).copy_(gradient)
    return True


def _call(node: Node, gradients: list[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    if not hasattr(node, "needs_input_grad"):
        result = node(*gradients)
        return result if isinstance(result, tuple) else (result,)
    # A function defined in Python answers for every argument, tensors or not.
    result = node.apply(*gradients)
    result = result if isinstance(result, tuple) else (result,)
    wanted = iter(
        gradient for gradient, needed in zip(result, node.needs_input_grad, strict=False) if needed
    )
    return tuple(next(wanted) if edge[0] is not None else None for edge in node.next_functions)


class BackwardWalk:
    """Differentiates a scalar by walking its graph, as PyTorch's engine would on a device.

    Args:
        saved: the table that forward saved into.
        on_node: called before a node runs, with its sequence number and its name.
        on_gradient: called with a leaf that has received its gradient, and whether the gradient
            was copied for it.
    """

    def __init__(
        self,
        saved: SavedTensors,
        on_node: Callable[[int, str], None],
        on_gradient: Callable[[torch.Tensor, bool], None],
    ) -> None:
        self._saved = saved
        self._on_node = on_node
        self._on_gradient = on_gradient

    @torch.no_grad()
    def __call__(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, a scalar, to every leaf it depends on."""
        root = loss.grad_fn
        assert root is not None, "the loss depends on no parameter"
        remaining = _count_dependencies(root)
        buffers = _InputBuffers()
        # PyTorch's `backward` holds what it begins with until it returns.
        beginning = torch.ones_like(loss)
        buffers.add(root, 0, beginning)
        ready = [(-root._sequence_nr(), 0, root)]
        order = 0
        with GraphExecGroup():
            while ready:
                _, _, node = heapq.heappop(ready)
                outputs = self._run(node, buffers)
                edges = list(node.next_functions)
                for position, (successor, index) in enumerate(edges):
                    if successor is None:
                        continue
                    gradient, outputs[position] = outputs[position], None
                    if gradient is not None:
                        buffers.add(successor, index, gradient)
                    del gradient
                    remaining[successor] -= 1
                    if remaining[successor] == 0:
                        order += 1
                        heapq.heappush(ready, (-successor._sequence_nr(), order, successor))
        self._saved.clear()

    def _run(self, node: Node, buffers: _InputBuffers) -> list[torch.Tensor | None]:
        gradients = buffers.pop(node)
        if all(gradient is None for gradient in gradients):
            return [None] * len(node.next_functions)
        variable = getattr(node, "variable", None)
        if variable is not None:
            gradient = gradients.pop()
            assert gradient is not None
            unshared = gradient._use_count() <= 1  # type: ignore[attr-defined]
            copied = _accumulate(variable, gradient, unshared=unshared)
            self._on_gradient(variable, copied)
            return []
        self._on_node(node._sequence_nr(), node.name())
        outputs = list(_call(node, gradients))
        # The engine validates what a node returned before it lets go of what the node was given
        # and of what it had saved.
        for position, (successor, index) in enumerate(node.next_functions):
            gradient = outputs[position]
            if successor is not None and gradient is not None:
                outputs[position] = _conform(gradient, successor, index)
        gradients.clear()
        self._saved.release_used()
        return outputs
