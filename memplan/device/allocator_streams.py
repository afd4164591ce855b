"""What other streams and captures mean for the simulated allocator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from memplan.device.allocator_blocks import Block, Pool, PoolId
from memplan.device.allocator_core import AllocatorState, PrivatePool
from memplan.errors import UsageError


class _Event:
    """Work on a stream that a freed block waits for."""

    __slots__ = ("block", "is_done")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.is_done = False


class StreamEvents:
    """Freed blocks that other streams still use, with one queue of events a stream.

    Args:
        finish: puts a block into the cache.
        is_gated: whether a capture forbids events right now.

    Limits: PyTorch visits the queues of different streams in hash order, here they are visited
    in the order of their first event. PyTorch remembers uses inside a capture by the block
    object's address, so a later object there can inherit them; here they stay with the block.
    """

    def __init__(self, finish: Callable[[Block], None], is_gated: Callable[[], bool]) -> None:
        self._finish = finish
        self._is_gated = is_gated
        self._queues: dict[int, deque[_Event]] = {}
        self._deferred: list[Block] = []
        self._captured_uses: dict[Block, set[int]] = {}

    def use(self, block: Block, stream: int) -> None:
        """Note that a stream other than its own uses a block."""
        if block.stream_uses is None:
            block.stream_uses = set()
        block.stream_uses.add(stream)
        if self._is_gated():
            self._captured_uses.setdefault(block, set()).add(stream)

    def defer(self, block: Block) -> None:
        """Let a freed block wait for the streams that use it."""
        if self._is_gated():
            self._deferred.append(block)
        else:
            self._record(block)

    def complete(self, stream: int) -> None:
        """Mark everything recorded so far on a stream as done."""
        for event in self._queues.get(stream, ()):
            event.is_done = True

    def complete_block(self, block: Block) -> None:
        """Mark every event that a block waits for as done."""
        for queue in self._queues.values():
            for event in queue:
                event.is_done = event.is_done or event.block is block

    def finish_ready(self) -> None:
        """Finish blocks whose events are done; a queue stops at its first unfinished event."""
        if self._deferred:
            self._record_deferred()
        if self._queues:
            self._drain(wait=False)

    def finish_all(self) -> None:
        """Wait for every event and finish its block."""
        self._record_deferred()
        self._drain(wait=True)

    def _record(self, block: Block) -> None:
        uses = sorted(block.stream_uses or ())
        block.stream_uses = None
        for stream in uses:
            self._queues.setdefault(stream, deque()).append(_Event(block))
            block.num_events += 1

    def _record_deferred(self) -> None:
        """Turn blocks freed during a capture into events; uses inside the capture are over."""
        deferred, self._deferred = self._deferred, []
        for block in deferred:
            captured = self._captured_uses.pop(block, set())
            block.stream_uses = (block.stream_uses or set()) - captured
            self._record(block)
            if block.num_events == 0:
                self._finish(block)

    def _drain(self, *, wait: bool) -> None:
        for stream in list(self._queues):
            queue = self._queues[stream]
            while queue and (wait or queue[0].is_done):
                block = queue.popleft().block
                block.num_events -= 1
                if block.num_events == 0:
                    self._finish(block)
            if not queue:
                del self._queues[stream]


class Diversions:
    """Private pools, and which requests go to them at the moment."""

    def __init__(self, state: AllocatorState) -> None:
        self._state = state
        self._stack: list[tuple[PoolId, frozenset[int] | None]] = []
        self.freeable: dict[PoolId, PrivatePool] = {}
        self.captures = 0

    @property
    def is_gated(self) -> bool:
        """Whether a capture forbids events and releases.

        Up to PyTorch 2.12 any diversion counts as a capture; later only an announced capture.
        """
        if self._state.torch_version >= (2, 13):
            return self.captures > 0
        return bool(self._stack)

    def pool_of(self, stream: int, *, is_small: bool) -> Pool:
        """Return the pool that serves a request now; the newest diversion wins."""
        owner: AllocatorState | PrivatePool = self._state
        for pool_id, streams in reversed(self._stack):
            if streams is None or stream in streams:
                owner = self._state.private[pool_id]
                break
        return owner.small if is_small else owner.large

    def get_or_create(self, pool_id: PoolId) -> PrivatePool:
        """Return a pool, creating it with one user."""
        private = self._state.private.get(pool_id)
        if private is None:
            private = self._state.private[pool_id] = PrivatePool(pool_id)
        return private

    def begin(self, pool_id: PoolId, streams: Iterable[int] | None) -> None:
        """Divert requests to a pool and count its user."""
        if any(pool_id == each for each, _streams in self._stack):
            raise UsageError(f"Requests go to pool {pool_id} already. End that diversion first.")
        private = self._state.private.get(pool_id)
        if private is None:
            self.get_or_create(pool_id)
        else:
            private.use_count += 1
            self.freeable.pop(pool_id, None)
        self._stack.append((pool_id, None if streams is None else frozenset(streams)))

    def end(self, pool_id: PoolId) -> None:
        """End the diversion to a pool."""
        for at, (each, _streams) in enumerate(self._stack):
            if each == pool_id:
                del self._stack[at]
                return
        raise UsageError(f"No requests go to pool {pool_id}. Begin the diversion first.")

    def release(self, pool_id: PoolId) -> None:
        """Count one user less; the last one makes the pool's cache freeable."""
        private = self._state.private.get(pool_id)
        if private is None or private.use_count == 0:
            raise UsageError(f"Pool {pool_id} has no users. Begin a diversion to it first.")
        private.use_count -= 1
        if private.use_count == 0:
            self.freeable[pool_id] = private

    def drop_empty(self, pool_id: PoolId) -> None:
        """Forget a freeable pool that holds no driver memory any more."""
        if self.freeable[pool_id].num_pieces == 0:
            del self.freeable[pool_id]
            del self._state.private[pool_id]
