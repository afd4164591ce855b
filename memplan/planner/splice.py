"""A step with some blocks recomputed, put together from recordings with none and with all.

Recomputing a block changes two things: its tensors are let go early, and its forward operators
run once more before its backward ones. Neither depends on what other blocks do. So from a tape
where nothing is recomputed and one where every block is, the tape of any choice between is put
together event by event: a tensor lives as in the tape of the block that lets it go.

Limits: a tensor that several blocks read lives by the choice of the last reader in backward.
What is chosen in the end is therefore recorded again before it is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.convolution import ConvolutionProblem
from memplan.fit.align import same_structure
from memplan.planner.layers import (
    BACKWARD,
    INSERTED,
    MICRO_BATCHES,
    UNPAIRED,
    Layer,
    births_of,
    deaths_of,
    moved,
    owners_of,
    places_of,
)
from memplan.planner.lifetimes import Effect, Lifetimes, lives_of
from memplan.tape import Events, Int64, Operators, Tape


def _deaths_decided(
    layer: Layer, takes: npt.NDArray[np.bool_]
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """Return the plain tape's blocks whose end a layer decides, and where each ends.

    Args:
        layer: the recording.
        takes: by its blocks, whether they live as there.
    """
    own = np.flatnonzero(takes & (layer.block_pair >= 0))
    death = deaths_of(layer.tape)[own]
    # What stays to the end of the recording is past every place.
    places = np.where(death < 0, float(len(layer.rows)), places_of(layer)[np.maximum(death, 0)])
    return layer.block_pair[own], np.maximum(places, 0.0)


class Splicer:
    """Puts together tapes of one batch in which any of some paths are recomputed.

    Args:
        plain: nothing is recomputed.
        layers: tapes in which each of the paths beside them is, none of them inside another.
    """

    def __init__(self, plain: Tape, layers: Sequence[tuple[Tape, tuple[str, ...]]]) -> None:
        self.plain = plain
        matched = [Layer.of(plain, tape, paths) for tape, paths in layers if paths]
        self._layers = [layer for layer in matched if layer is not None]

    @property
    def paths(self) -> tuple[str, ...]:
        """What can be chosen."""
        return tuple(path for layer in self._layers for path in layer.paths)

    def moved_to(self, plain: Tape) -> Splicer | None:
        """Return the same for another batch, from its plain tape alone.

        A repeated forward takes what the first one takes, and everything else is in the plain tape.
        None where the two plain tapes, or the two forwards, are not alike.
        """
        if not same_structure(self.plain, plain):
            return None
        layers = [moved(layer, self.plain, plain) for layer in self._layers]
        if None in layers:
            return None
        other = Splicer(plain, ())
        other._layers = [layer for layer in layers if layer is not None]
        return other

    @cached_property
    def exclusive(self) -> tuple[tuple[int, ...], ...]:
        """Pairs of choices of which one lies inside the other, as indices of `paths`."""
        of = {path: index for index, path in enumerate(self.paths)}
        return tuple(
            (of[outer], index)
            for path, index in of.items()
            for outer in self.paths
            if path.startswith(f"{outer}.")
        )

    @cached_property
    def _plain_deaths(self) -> Int64:
        return deaths_of(self.plain)

    def _block_owner(self, layer: Layer) -> Int64:
        """Return, by the layer's blocks, the path by whose choice it lives, -1 for none.

        That is the one whose backward lets it go, and where that is none's, the one that made it.
        """
        tape, owners = layer.tape, owners_of(layer.tape, layer.paths)
        plain_owners = owners_of(self.plain, layer.paths)
        pairs, phases = layer.block_pair, self.plain.operators.phase
        death = np.where(pairs >= 0, self._plain_deaths[np.maximum(pairs, 0)], -1)
        in_backward = (death >= 0) & (phases[np.maximum(death, 0)] == BACKWARD)
        own_death = deaths_of(tape)
        own_in_backward = (own_death >= 0) & (
            tape.operators.phase[np.maximum(own_death, 0)] == BACKWARD
        )
        births, operators = births_of(tape)
        maker = np.full(len(pairs), -1, dtype=np.int64)
        maker[tape.events.block[births]] = np.where(
            operators < 0, -1, owners[np.maximum(operators, 0)]
        )
        owner = np.where(own_in_backward, owners[np.maximum(own_death, 0)], -1)
        owner = np.where(in_backward, plain_owners[np.maximum(death, 0)], owner)
        owner = np.where(owner < 0, maker, owner)
        inserted = pairs == INSERTED
        owner = np.where(pairs == UNPAIRED, -1, owner)
        # A block of a repeated forward is there only if that forward is.
        made_by = np.full(len(pairs), -1, dtype=np.int64)
        made_by[tape.events.block[births]] = np.where(
            operators < 0, -1, layer.inserted_of[np.maximum(operators, 0)]
        )
        return np.where(inserted, made_by, owner)

    @cached_property
    def _owners_by_layer(self) -> list[Int64]:
        return [self._block_owner(layer) for layer in self._layers]

    def _chosen_in(self, layer: Layer, chosen: Sequence[str]) -> npt.NDArray[np.bool_]:
        wanted = set(chosen)
        # The last entry answers for index -1: no path, never chosen.
        return np.array([path in wanted for path in layer.paths] + [False])

    def lifetimes(self) -> Lifetimes:
        """Return when each block of a micro-batch lives, and what the choices change in that.

        Points are the operators of all tapes, the inserted ones at their places.
        """
        places = [np.arange(len(self.plain.operators.name), dtype=float)]
        for number, layer in enumerate(self._layers):
            inserted = np.flatnonzero(layer.rows < 0)
            # Layers do not share points, however alike their places.
            places.append(places_of(layer)[inserted] + 1e-9 * number)
        every = np.concatenate(places)
        section = self.plain.operators.section
        first, last = (np.flatnonzero(section == MICRO_BATCHES[0])[i] for i in (0, -1))
        points = np.sort(every[(every > first - 1) & (every <= last)])
        plain = lives_of(self.plain, places[0], points, np.zeros(0, dtype=np.int64))
        effects, offset = [], 0
        for number, (layer, owners) in enumerate(
            zip(self._layers, self._owners_by_layer, strict=True)
        ):
            shifted = places_of(layer)
            shifted = np.where(layer.rows < 0, shifted + 1e-9 * number, shifted)
            shifted_owners = np.where(owners >= 0, owners + offset, -1)
            own = lives_of(layer.tape, shifted, points, shifted_owners)
            plain_owners = np.full(len(self.plain.block_category), -1, dtype=np.int64)
            paired = layer.block_pair >= 0
            plain_owners[layer.block_pair[paired]] = shifted_owners[paired]
            drops = lives_of(self.plain, places[0], points, plain_owners)
            inserted_of = np.where(layer.inserted_of >= 0, layer.inserted_of + offset, -1)
            inserted_of[layer.tape.operators.section != MICRO_BATCHES[0]] = -1
            effects.append(Effect(layer.tape, own, drops, inserted_of))
            offset += len(layer.paths)
        return Lifetimes(len(points), plain.rows, plain.born, plain.gone, tuple(effects))

    def tape(self, chosen: Sequence[str]) -> Tape:
        """Return the tape in which the chosen paths are recomputed.

        Args:
            chosen: some of `paths`, none inside another.
        """
        parts = [_Part.of_plain(self.plain)]
        decided = np.full(len(self.plain.block_category), -1.0)
        every: list[npt.NDArray[np.bool_]] = []
        for layer, owners in zip(self._layers, self._owners_by_layer, strict=True):
            flags = self._chosen_in(layer, chosen)
            every.append(flags)
            np.maximum.at(decided, *_deaths_decided(layer, flags[owners]))
        parts[0] = parts[0].without_frees(decided >= 0)
        for layer, owners, flags in zip(self._layers, self._owners_by_layer, every, strict=True):
            blocks, deaths = _deaths_decided(layer, flags[owners])
            takes = flags[owners]
            # Where two choices let go of a block, it lives as long as the longer one wants it.
            own = np.flatnonzero(takes & (layer.block_pair >= 0))
            takes[own[deaths < decided[blocks]]] = False
            decided[blocks[deaths == decided[blocks]]] = np.inf
            parts.append(_Part.of_layer(layer, takes, flags))
        description = replace(
            self.plain.description,
            spec=replace(
                self.plain.description.spec,
                recompute=tuple(p for p in self.paths if p in set(chosen)),
            ),
        )
        return replace(_joined(self.plain, parts), description=description)


@dataclass(frozen=True)
class _Part:
    """Operators and events of one source that go into a tape, each with its place."""

    tape: Tape
    operators: Int64
    """Rows of the source's operators that are taken."""
    operator_place: npt.NDArray[np.float64]
    """By row of all the source's operators: where it stands among the plain tape's."""
    events: Int64
    """Rows of the source's events that are taken."""
    block_pair: Int64 | None
    """By block of the source: the plain tape's, -1 where it has none; None for the plain tape."""

    @classmethod
    def of_plain(cls, tape: Tape) -> _Part:
        everything = np.arange(len(tape.operators.name))
        return cls(tape, everything, everything.astype(float), np.arange(len(tape)), None)

    def without_frees(self, dropped: npt.NDArray[np.bool_]) -> _Part:
        events = self.tape.events
        frees = (events.kind == tapes.FREE) & dropped[events.block]
        return replace(self, events=np.flatnonzero(~frees))

    @classmethod
    def of_layer(
        cls, layer: Layer, takes: npt.NDArray[np.bool_], flags: npt.NDArray[np.bool_]
    ) -> _Part:
        """Take the repeated forwards of what is chosen, and the frees of its tensors."""
        tape = layer.tape
        place = places_of(layer)
        operators = np.flatnonzero((layer.rows < 0) & flags[layer.inserted_of])
        events = tape.events
        of_event = takes[events.block]
        is_free = events.kind == tapes.FREE
        made_here = layer.block_pair[events.block] < 0
        taken = of_event & (made_here | is_free)
        return cls(tape, operators, place, np.flatnonzero(taken), layer.block_pair)


def _joined(plain: Tape, parts: Sequence[_Part]) -> Tape:
    """Return one tape of all parts, in the order of their places."""
    names = list(dict.fromkeys(name for part in parts for name in part.tape.operator_names))
    convolutions = list(dict.fromkeys(c for part in parts for c in part.tape.convolutions))
    name_at = {name: index for index, name in enumerate(names)}
    convolution_at = {one: index for index, one in enumerate(convolutions)}
    launches = [one for part in parts for one in part.tape.launches]
    places = np.concatenate([part.operator_place[part.operators] for part in parts])
    order = np.argsort(places, kind="stable")
    sorted_places = places[order]

    operator_columns: dict[str, list[npt.NDArray[np.int64]]] = {
        k: [] for k in vars(plain.operators) if k != "line"
    }
    event_columns: dict[str, list[npt.NDArray[np.int64]]] = {k: [] for k in vars(plain.events)}
    categories = [plain.block_category]
    event_places: list[npt.NDArray[np.float64]] = []
    within: list[Int64] = []
    first_block, first_launch = len(plain.block_category), 0
    for part in parts:
        for key, written in operator_columns.items():
            column = getattr(part.tape.operators, key)[part.operators]
            if key == "name":
                column = np.array([name_at[n] for n in part.tape.operator_names])[column]
            written.append(column)
        chosen = {key: values[part.events] for key, values in vars(part.tape.events).items()}
        row = chosen["operator"].astype(np.int64)
        place = np.where(row < 0, -1.0, part.operator_place[np.maximum(row, 0)])
        starts = np.searchsorted(part.tape.events.operator, row, side="left")
        within.append(part.events - starts)
        event_places.append(place)
        chosen["about"] = _about(chosen, part.tape, convolution_at, first_launch)
        if part.block_pair is not None:
            fresh = part.block_pair < 0
            numbers = np.where(fresh, first_block + np.cumsum(fresh) - 1, part.block_pair)
            chosen["block"] = numbers[chosen["block"]]
            categories.append(part.tape.block_category[fresh])
            first_block += int(fresh.sum())
        chosen["operator"] = np.where(
            place < 0, -1, np.searchsorted(sorted_places, place, side="right") - 1
        )
        for key, values in chosen.items():
            event_columns[key].append(values)
        first_launch += len(part.tape.launches)
    event_order = np.lexsort((np.concatenate(within), np.concatenate(event_places)))
    return replace(
        plain,
        events=Events(
            **{
                key: np.concatenate(columns)[event_order].astype(getattr(plain.events, key).dtype)
                for key, columns in event_columns.items()
            }
        ),
        operators=Operators(
            **{
                key: np.concatenate(columns)[order].astype(getattr(plain.operators, key).dtype)
                for key, columns in operator_columns.items()
            }
        ),
        block_category=np.concatenate(categories),
        operator_names=tuple(names),
        convolutions=tuple(convolutions),
        launches=tuple(launches),
        lines=(),
        tensors=(),
        block_tensor=None,
    )


def _about(
    events: dict[str, npt.NDArray[np.int64]],
    tape: Tape,
    convolution_at: dict[ConvolutionProblem, int],
    first_launch: int,
) -> npt.NDArray[np.int64]:
    """Return what is asked about, with the numbers of convolutions and launches when joined."""
    asks, about = events["asks"], events["about"].astype(np.int64)
    where = np.array([convolution_at[one] for one in tape.convolutions], dtype=np.int64)
    convolves = asks == tapes.CONVOLUTION
    about[convolves] = where[about[convolves]]
    about[asks >= tapes.FIRST_BUFFER] += first_launch
    return about
