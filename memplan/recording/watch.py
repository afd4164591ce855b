"""Watches a user's script from inside its own process, without changing its steps.

Begun by `start/sitecustomize.py` as soon as torch is imported. Nothing here initializes CUDA: the
allocator's history starts when the script does that. What was seen is written as JSON when the
script ends, by itself, by an error or because it has been watched for long enough.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from memplan.phantom import control
from memplan.recording.enough import Enough
from memplan.recording.failures import described, without_ours
from memplan.recording.labels import Labels
from memplan.recording.modules_seen import ModulesSeen, label
from memplan.recording.peaks import Peaks
from memplan.recording.script_events import WORKSPACE, Mark, breakdown
from memplan.recording.sites import own_frame
from memplan.recording.value_rules import ValueRules
from memplan.recording.values import KnownValues
from memplan.recording.watch_settings import HISTORY_NAME, WatchSettings

_MARKED_STEPS = 3


class Watch:
    """One watched process."""

    def __init__(self, settings: WatchSettings) -> None:
        self.settings = settings
        self.known = KnownValues(
            ValueRules(number=settings.number, selected=settings.selected, at_line=settings.at_line)
        )
        self.modules = ModulesSeen(_nobody)
        self.enough = Enough(settings.steps)
        self.modules.on_root = self.enough.begin_forward
        self.known.moving = self.modules.input
        self.steps: list[dict[str, int]] = []
        self.marks: list[Mark] = []
        self.out_of_memory: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self._peaks = Peaks(lambda: self._device)
        self._marked_steps: Counter[int] = Counter()
        self._round: set[int] = set()
        self._device = 0
        self._record: Any = torch.cuda.memory._record_memory_history
        self._is_started = False
        self._is_written = False
        self._is_mine = True
        """Whether this process is watched: not one forked from another that uses the card."""
        self._begun = time.monotonic()

    # -- beginning

    def install(self) -> None:
        """Register the hooks; the rest waits for CUDA."""
        self.modules.install()
        # Its hooks are global, which the user's script has no part in.
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global")
        self.known.follow_modules()
        register_optimizer_step_pre_hook(self._before_update)
        register_optimizer_step_post_hook(self._after_update)
        torch.cuda._lazy_call(self._on_cuda)  # type: ignore[no-untyped-call]
        self.enough.install()
        self._peaks.install()
        self._previous_hook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self.write)
        os.register_at_fork(after_in_child=self._in_child)
        multiprocessing.util.register_after_fork(self, Watch._in_process)
        with contextlib.suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGTERM, self._on_end)

    def _in_child(self) -> None:
        """Begin anew in a process that was forked: it may be the one that trains."""
        self._is_mine = not self._is_started
        self.modules.tell = _nobody
        self.modules.thread = threading.get_ident()
        self.error = None

    def _in_process(self) -> None:
        """Let a process of `multiprocessing`, which ends without `atexit`, write what it saw."""
        multiprocessing.util.Finalize(None, self._write_if_used, exitpriority=0)

    def _write_if_used(self) -> None:
        if self._is_started:
            self.write()

    def _on_cuda(self) -> None:
        """Start the allocator's history, as CUDA has just been initialized."""
        if self._is_started:
            return
        self._is_started = True
        self._device = torch.cuda.current_device()
        self._labels = Labels(self._device)
        self.modules.tell = self._labels.tell
        self._record(
            "all",
            context="alloc" if self.settings.keeps_history else None,
            stacks="python",
            max_entries=self.settings.most_events,
        )
        # The script's own wish to record, or to stop, must not end what is recorded here.
        torch.cuda.memory._record_memory_history = _ignored
        observe: Any = torch._C
        observe._cuda_attach_out_of_memory_observer(self._on_out_of_memory)
        if self.settings.follows_values:
            self.known.install()

    # -- during the run

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        self.modules.set_phase("optimizer_step")

    def _after_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Note where a step ended; stop the script when it has been watched for long enough."""
        del args, kwargs
        self.modules.set_phase("between")
        if not self._is_started:
            return
        self._marked_steps[id(optimizer)] += 1
        if self._marked_steps[id(optimizer)] <= _MARKED_STEPS or self._has_grown():
            self.marks.append(self._mark(optimizer))
        if not self._is_a_step(optimizer):
            return
        self.known.reads.end_step()
        self.steps.append(self._memory())
        if self.enough.end_step(self.steps):
            self._stop()

    def _is_a_step(self, optimizer: Any) -> bool:
        """Return whether an optimizer begins a new round: of several that take turns one counts."""
        if id(optimizer) in self._round or not self._round:
            self._round = {id(optimizer)}
            return True
        self._round.add(id(optimizer))
        return False

    def _memory(self) -> dict[str, int]:
        stats = torch.cuda.memory_stats(self._device)
        return {
            "allocated_bytes": stats["allocated_bytes.all.current"],
            "reserved_bytes": stats["reserved_bytes.all.current"],
            **self._peaks.of(stats),
            "num_alloc_retries": stats["num_alloc_retries"],
            "num_ooms": stats["num_ooms"],
            "num_allocations": stats["allocation.all.allocated"],
        }

    def _has_grown(self) -> bool:
        stats = torch.cuda.memory_stats(self._device)
        peak = self._peaks.of(stats)["allocated_peak_bytes"]
        return not self.steps or peak > self.steps[-1]["allocated_peak_bytes"]

    def _mark(self, optimizer: Any) -> Mark:
        """Note which addresses hold parameters, gradients and optimizer state now."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for root in list(self.modules.roots):
            parameters += [*root.parameters(), *root.buffers()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        state = [
            value
            for one in optimizer.state.values()
            for value in (one.values() if isinstance(one, dict) else ())
            if isinstance(value, torch.Tensor)
        ]
        kinds = {"optimizer_state": state, "gradient": gradients, "parameter": parameters}
        return Mark(
            num_allocations=torch.cuda.memory_stats(self._device)["allocation.all.allocated"],
            categories={
                address: kind
                for kind, tensors in kinds.items()
                for tensor in tensors
                if (address := _address(tensor))
            },
        )

    def _stop(self) -> None:
        """End the script here; what it would do at its end, such as upload, is left out."""
        self.write(stopped=True)
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        """Write what was seen when the parent ends the script, for it took too long."""
        del number, frame
        self.write(stopped=True)
        os._exit(143)

    # -- errors

    def _on_out_of_memory(self, device: int, size: int, allocated: int, free: int) -> None:
        """Keep where memory ran out, also when the script catches it."""
        del device, free, allocated
        frame = own_frame(sys._current_frames().get(self.modules.thread))
        self.out_of_memory = {
            "message": "",
            "requested_bytes": size,
            "file": "" if frame is None else frame.f_code.co_filename,
            "line": 0 if frame is None else frame.f_lineno,
            "module": self.modules.path,
            "phase": self.modules.phase,
            "step": len(self.steps),
            "is_caught": True,
        }

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self.modules.tell("")
        if isinstance(error, torch.OutOfMemoryError) and self.out_of_memory is not None:
            self.out_of_memory |= {"message": str(error), "is_caught": False}
        elif not issubclass(kind, (SystemExit, KeyboardInterrupt)):
            # Before the error is told, for telling it may read on.
            by_rule = self.known.reads.last_by_rule
            self.error = {**described(kind, error, trace), "read_by_rule": by_rule}
        self._previous_hook(kind, error, without_ours(trace))

    # -- the end

    def write(self, *, stopped: bool = False) -> None:
        """Write what was seen, once."""
        if self._is_written or not self._is_mine:
            return
        self._is_written = True
        if self.out_of_memory is not None:
            self.out_of_memory["module"] = self.modules.models.shown(self.out_of_memory["module"])
        seen: dict[str, Any] = {
            "pid": os.getpid(),
            "rank": int(os.environ.get("RANK", "0")),
            "torch": torch.__version__,
            "used_cuda": self._is_started,
            "stopped": stopped,
            "steps": self.steps,
            "num_evaluations": self.enough.num_evaluations,
            "validation_left_steps": self.enough.steps_before_validation,
            "out_of_memory": self.out_of_memory,
            "error": self.error,
            "argv": sys.argv,
            "seconds": time.monotonic() - self._begun,
        }
        if self._is_started:
            seen |= self._memory_seen()
        path = Path(self.settings.folder) / f"seen-{os.getpid()}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(seen))
        partial.replace(path)

    def _give_back_workspaces(self) -> None:
        """Free cuBLAS's workspaces under a label, which tells them from what is kept.

        PyTorch makes one at a stream's first product, inside whatever module that is, and keeps it.
        Source: `getCUDABlasWorkspace` in aten/src/ATen/cuda/CublasHandlePool.cpp (PyTorch 2.11).
        """
        self._labels.tell(label(WORKSPACE, ""))
        torch._C._cuda_clearCublasWorkspaces()

    def _memory_seen(self) -> dict[str, Any]:
        self.known.clear()
        peaks = self._memory()
        self._give_back_workspaces()
        snapshot = torch.cuda.memory._snapshot(self._device)
        self._labels.write_into(snapshot["device_traces"][self._device])
        self._record(None)
        by_rule = [
            {"line": line, "answer": answer, "count": count}
            for (line, answer), count in self.known.reads.by_rule.most_common()
        ]
        seen = breakdown(snapshot, self._device, self.marks, self.steps, self.modules.models.shown)
        if self.settings.keeps_history:
            # Its entries have the categories that were found just now.
            name = HISTORY_NAME.format(pid=os.getpid())
            with (Path(self.settings.folder) / name).open("wb") as file:
                pickle.dump(snapshot | {"memplan": {"origin": "phantom"}}, file, protocol=4)
        return {
            "peaks": peaks,
            "device_peak_bytes": control.peak_bytes(self._device),
            "missing_calls": control.missing_calls(),
            "host_reads": {
                "from_host": self.known.reads.num_from_host,
                "by_rule": by_rule,
                "told": sorted(self.known.reads.told),
            },
            "breakdown": seen,
        }


def _ignored(*_: Any, **__: Any) -> None:
    """Do nothing: the allocator's history is being recorded."""


def _address(tensor: torch.Tensor) -> int:
    """Return where a tensor's memory on the card begins; 0 where it has none of its own.

    A tensor that stands for parts on several devices has those of this one inside.
    """
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if not tensor.is_cuda or tensor.layout is not torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass of tensors without memory
        return 0


def _nobody(_: str) -> None:
    """Hear a label while there is no allocator to keep it."""


def begin() -> None:
    """Begin to watch this process, if the parent asked for it."""
    Watch(WatchSettings.load()).install()
