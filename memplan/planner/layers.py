"""A recording in which blocks are recomputed, matched operator by operator to one without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.tape import Int64, Tape

Float64 = npt.NDArray[np.float64]

MICRO_BATCHES = tuple(tapes.SECTIONS.index(name) for name in ("micro_batch", "crowded_micro_batch"))
BACKWARD = tapes.PHASES.index("backward")
_FORWARD = tapes.PHASES.index("forward")
# What a layer's block is that corresponds to none of the plain tape's.
INSERTED = -1
UNPAIRED = -2


def owners_of(tape: Tape, paths: Sequence[str]) -> Int64:
    """Return, by operator of a micro-batch, the innermost of the paths it runs in, else -1."""
    of_path = {path: index for index, path in enumerate(paths)}
    of_module = np.full(len(tape.modules) + 1, -1, dtype=np.int64)
    for index, module in enumerate(tape.modules):
        parts = module.path.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        of_module[index] = next((of_path[one] for one in prefixes if one in of_path), -1)
    owners = of_module[tape.operators.module]
    owners[~np.isin(tape.operators.section, MICRO_BATCHES)] = -1
    return owners


def _keys(tape: Tape) -> list[tuple[object, ...]]:
    operators = tape.operators
    names = [tape.operator_names[name] for name in operators.name]
    columns = (operators.module, operators.section, operators.phase, operators.flops)
    moved = operators.moved_bytes.tolist()
    return list(zip(names, *(column.tolist() for column in columns), moved, strict=True))


def _matched(plain: Tape, other: Tape) -> Int64 | None:
    """Return by operator of `other` its row in `plain`; one that is only there gets -1 - next row.

    None where operators other than repeated forwards differ.
    """
    ours, theirs = _keys(plain), _keys(other)
    rows = np.empty(len(theirs), dtype=np.int64)
    at = 0
    for index, key in enumerate(theirs):
        if at < len(ours) and ours[at] == key:
            rows[index] = at
            at += 1
        elif other.operators.phase[index] == BACKWARD:
            rows[index] = -1 - at
        else:
            return None
    return rows if at == len(ours) else None


@dataclass(frozen=True)
class Layer:
    """A tape in which every one of some paths is recomputed, matched to the plain one."""

    tape: Tape
    paths: tuple[str, ...]
    rows: Int64
    """By operator: row in the plain tape, or -1 - the row before which it is inserted."""
    inserted_of: Int64
    """By operator: index of the path that an inserted one belongs to, -1 for the others."""
    block_pair: Int64
    """By block: the plain tape's block it corresponds to, `INSERTED` or `UNPAIRED`."""

    @classmethod
    def of(cls, plain: Tape, tape: Tape, paths: tuple[str, ...]) -> Layer | None:
        """Return a recording matched to the plain one of the same batch; None if they differ.

        Args:
            plain: nothing is recomputed.
            tape: every one of the paths is.
            paths: none of them inside another.
        """
        if [one.path for one in plain.modules] != [one.path for one in tape.modules]:
            return None
        rows = _matched(plain, tape)
        if rows is None:
            return None
        inserted_of = np.where(rows < 0, owners_of(tape, paths), -1)
        if ((rows < 0) & (inserted_of < 0)).any():
            return None
        pairs = _paired(plain, tape, rows)
        return None if pairs is None else cls(tape, paths, rows, inserted_of, pairs)


def births_of(tape: Tape) -> tuple[Int64, Int64]:
    """Return rows of allocations and scratch, and the operator of each."""
    births = np.flatnonzero(np.isin(tape.events.kind, (tapes.ALLOCATE, tapes.SCRATCH)))
    return births, tape.events.operator[births].astype(np.int64)


def _paired(plain: Tape, tape: Tape, rows: Int64) -> Int64 | None:
    """Return by block of `tape` the block of `plain` that the same operator allocates in turn.

    Blocks of operators that are only in `tape` are `INSERTED`. Where an operator takes more
    temporaries in one tape than in the other, its temporaries are `UNPAIRED`.
    """
    our_births, our_place = births_of(plain)
    every, operators = births_of(tape)
    place = np.where(operators < 0, -1, rows[np.maximum(operators, 0)])
    # What is allocated before any operator ran is common to both.
    common = (operators < 0) | (place >= 0)
    births, place = every[common], place[common]
    count = len(plain.operators.name) + 1
    differs = np.bincount(our_place + 1, minlength=count) != np.bincount(place + 1, minlength=count)
    ours = ~(differs[our_place + 1] & _are_temporary(plain, our_births))
    theirs = ~(differs[place + 1] & _are_temporary(tape, births))
    if not np.array_equal(our_place[ours], place[theirs]):
        return None
    pairs = np.full(len(tape.block_category), INSERTED, dtype=np.int64)
    pairs[tape.events.block[births]] = UNPAIRED
    pairs[tape.events.block[births[theirs]]] = plain.events.block[our_births[ours]]
    return pairs


def _are_temporary(tape: Tape, births: Int64) -> npt.NDArray[np.bool_]:
    """Return which allocations end with the operator that made them."""
    scratch = tape.events.kind[births] == tapes.SCRATCH
    temporary: npt.NDArray[np.bool_] = scratch | (
        deaths_of(tape)[tape.events.block[births]] == tape.events.operator[births]
    )
    return temporary


def deaths_of(tape: Tape) -> Int64:
    """Return by block the operator after which it is freed, -1 where it never is."""
    deaths = np.full(len(tape.block_category), -1, dtype=np.int64)
    frees = tape.events.kind == tapes.FREE
    deaths[tape.events.block[frees]] = tape.events.operator[frees]
    return deaths


def moved(layer: Layer, old: Tape, new: Tape) -> Layer | None:
    """Return a layer with the sizes of another batch, taken from its plain tape."""
    tape = layer.tape
    source = _first_runs(layer, old)
    if source is None:
        return None
    births, twins = _twin_births(layer, source, old)
    if births is None:
        return None
    requested = tape.events.requested_bytes.copy()
    requested[births] = new.events.requested_bytes[twins]
    convolutions, launches = list(tape.convolutions), list(tape.launches)
    for birth, twin in zip(births.tolist(), twins.tolist(), strict=True):
        about, its = tape.events.about[birth], new.events.about[twin]
        if tape.events.asks[birth] == tapes.CONVOLUTION:
            convolutions[about] = new.convolutions[its]
        elif tape.events.asks[birth] >= tapes.FIRST_BUFFER:
            launches[about] = new.launches[its]
    made_tape = replace(
        tape,
        description=replace(tape.description, micro_batch_size=new.description.micro_batch_size),
        events=replace(tape.events, requested_bytes=requested),
        operators=replace(
            tape.operators,
            flops=new.operators.flops[source],
            moved_bytes=new.operators.moved_bytes[source],
        ),
        convolutions=tuple(convolutions),
        launches=tuple(launches),
    )
    return replace(layer, tape=made_tape)


def _first_runs(layer: Layer, plain: Tape) -> Int64 | None:
    """Return by operator of a layer the plain tape's that does the same; None if one has none.

    For a repeated forward's operators those are the first forward's, in the same order.
    """
    keys, theirs = _keys(plain), _keys(layer.tape)
    owners = owners_of(plain, layer.paths)
    is_forward = plain.operators.phase == _FORWARD
    source = layer.rows.copy()
    for section in MICRO_BATCHES:
        for path in range(len(layer.paths)):
            mine = (layer.inserted_of == path) & (layer.tape.operators.section == section)
            first = np.flatnonzero(
                (owners == path) & is_forward & (plain.operators.section == section)
            )
            waiting = iter(first.tolist())
            for index in np.flatnonzero(mine).tolist():
                wanted = _work(theirs[index])
                match = next((row for row in waiting if _work(keys[row]) == wanted), None)
                if match is None:
                    return None
                source[index] = match
    return source


def _work(key: tuple[object, ...]) -> tuple[object, ...]:
    """Return what of an operator's key does not depend on when it runs."""
    name, _, _, _, flops, moved = key
    return name, flops, moved


def _twin_births(layer: Layer, source: Int64, plain: Tape) -> tuple[Int64 | None, Int64]:
    """Return a layer's allocations and the plain tape's rows that take as much at any batch.

    These are rows of events; the first is None where a repeated forward takes other sizes than
    the first one. Unpaired temporaries are left out: no spliced tape takes them.

    Args:
        layer: the recording.
        source: by its operators, the plain tape's operator that does the same.
        plain: the plain tape of the same batch.
    """
    events = layer.tape.events
    our_births, our_operators = births_of(plain)
    birth_of = np.full(len(plain.block_category), -1, dtype=np.int64)
    birth_of[plain.events.block[our_births]] = our_births
    births, made = births_of(layer.tape)
    pairs = layer.block_pair[events.block[births]]
    starts = np.searchsorted(our_operators, source[np.maximum(made, 0)], side="left")
    ordinal = np.arange(len(births)) - np.searchsorted(made, made, side="left")
    at = np.minimum(starts + ordinal, len(our_births) - 1)
    twins = np.where(pairs >= 0, birth_of[np.maximum(pairs, 0)], our_births[at])
    inserted = pairs == INSERTED
    alike = (
        (our_operators[at] == source[np.maximum(made, 0)])
        & (plain.events.requested_bytes[twins] == events.requested_bytes[births])
        & (plain.events.kind[twins] == events.kind[births])
    )
    known = pairs != UNPAIRED
    fits = bool(alike[inserted].all())
    return births[known] if fits else None, twins[known]


def places_of(layer: Layer) -> npt.NDArray[np.float64]:
    """Return by operator of a layer where it stands among the plain tape's, as a fraction."""
    rows, count = layer.rows, len(layer.rows)
    # Inserted operators stand between two rows of the plain tape, in their own order.
    between = -2 - rows + (np.arange(count) + 1) / (count + 2)
    return np.where(rows < 0, between, rows)
