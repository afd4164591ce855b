"""Batches read in order, by this process or by several, with errors told in one line."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from memplan.errors import BadInputError, ProcessError
from memplan.processes import CleanContext, answer_seconds, num_cores

from .pipeline import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from memplan.workload import Batch

    from .pipeline import LoadedSample


def read_batches(
    samples: Dataset[LoadedSample | Missing],
    groups: Sequence[list[Any]],
    merge: Callable[[Sequence[LoadedSample]], Any],
    num_workers: int,
    seed: int,
    tell: Callable[[str], None] | None = None,
) -> Batches:
    """Return the batches of the groups, in their order.

    Args:
        samples: what the groups' requests index.
        groups: the requests of each batch.
        merge: makes a batch of samples.
        num_workers: most loader processes; 0 reads in this one.
        seed: of what torch's workers draw, which is nothing here.
        tell: told why an image was left out, a sentence each time; None leaves none out.
    """
    # More processes than cores, or than batches, only wait.
    num_workers = min(num_workers, len(groups), num_cores())

    def make_loader(first: int) -> DataLoader[Any]:
        return DataLoader(
            samples,
            batch_sampler=_InOrder(groups[first:]),
            collate_fn=_Merge(merge),
            num_workers=num_workers,
            worker_init_fn=_start_worker if num_workers else None,
            # This process has computed by now, so copies of it could wait for ever.
            multiprocessing_context=CleanContext() if num_workers else None,
            timeout=_LOOK_SECONDS if num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF),
        )

    return Batches(make_loader, len(groups), tell)


class Batches:
    """The loader's batches, with a worker's error told in one line.

    A process that is killed is replaced: what it was to give is read again, which gives the same,
    since a request alone fixes its sample.

    Args:
        make_loader: returns a loader of the batches from a place on.
        count: batches in all; one whose images are all left out is not given.
        tell: as `read_batches` has it.
    """

    def __init__(
        self,
        make_loader: Callable[[int], DataLoader[Any]],
        count: int,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._make_loader = make_loader
        self._count = count
        self._tell = tell

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        given, lost = 0, 0
        while given < self._count:
            loader = self._make_loader(given)
            message = ""
            before = given
            try:
                for batch, unreadable in _each(loader):
                    given += 1
                    self._leave_out(unreadable)
                    if batch is not None:
                        yield batch
            except BadInputError as error:
                # From a worker, torch sends the traceback as the message; ours is its last line.
                message = re.sub(_NAME, "", str(error).strip().splitlines()[-1])
                # Its frames hold the loader in a cycle; freed by the collector instead of here, the
                # loader would wait 5 s for its processes.
                error.__traceback__ = None
            except (RuntimeError, EOFError, OSError) as error:
                if not loader.num_workers or not _is_of_processes(error):
                    raise
                lost = 1 if given > before else lost + 1
                if lost > _MOST_LOST:
                    raise ProcessError(
                        f"A process that loads images is gone or stuck ({_first_line(error)}), "
                        f"and so were {_MOST_LOST} in its place. Memory may have run out: give "
                        "fewer --workers, or --workers 0 to load without them."
                    ) from None
                error.__traceback__ = None
            if message:
                raise BadInputError(message)

    def _leave_out(self, unreadable: Sequence[str]) -> None:
        for text in unreadable:
            if self._tell is None:
                raise BadInputError(text)
            self._tell(text)


class _Merge:
    """Puts the samples there are together, with what could not be read beside them."""

    def __init__(self, merge: Callable[[Sequence[LoadedSample]], Any]) -> None:
        self._merge = merge

    def __call__(self, samples: Sequence[LoadedSample | Missing]) -> tuple[Any, list[str]]:
        unreadable = [text for one in samples for text in getattr(one, "unreadable", ())]
        there = [one for one in samples if not isinstance(one, Missing)]
        return (self._merge(there) if there else None), unreadable


def _each(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches, looking now and then whether its processes are still there.

    torch looks when its time-out has passed, and may be called again after that.
    """
    iterator, waited = iter(loader), 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            waited += _LOOK_SECONDS
            if waited >= answer_seconds() or not str(error).startswith("DataLoader timed out"):
                raise
        else:
            waited = 0
            yield batch


_NAME = r"^[\w.]*Error: "  # of an error, as a traceback ends
_LOOK_SECONDS = 2
_MOST_LOST = 3  # processes lost in a row without a batch between them


def _is_of_processes(error: Exception) -> bool:
    """Return whether loading failed because a process or its pipe is no more."""
    return not isinstance(error, RuntimeError) or str(error).startswith("DataLoader ")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")


class _InOrder(Sampler[list[Any]]):
    """The requests, a batch each."""

    def __init__(self, groups: Sequence[list[Any]]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[list[Any]]:
        yield from self._groups


_LEFT_TO_TRAINING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
)


def _start_worker(_worker: int) -> None:
    """Leave signals to the training process, which finishes its step before it stops.

    Ctrl-C and a cluster's SIGTERM reach every process of the run. A worker ends when it is told to,
    or when the training process is gone.
    """
    cv2.setNumThreads(0)
    for number in _LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)
