"""Laws of the fit: it recovers lines and programs that it was given."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan import tape as tapes
from memplan.fit.affine import fit
from memplan.spec import StepSpec

_bytes = st.integers(0, 1 << 34)
_per_image = st.integers(0, 1 << 26)
_range = st.tuples(st.integers(1, 64), st.integers(0, 500)).map(lambda r: (r[0], r[0] + r[1]))


def _tape(lines, batch, breaks=(), alternates=False):
    """Return a tape of one allocation a line, and one more for each break at or below the batch.

    Where it alternates, odd batches have one more still.
    """
    extra = sum(batch >= at for at in breaks) + (alternates and batch % 2)
    sizes = [a + b * batch for a, b in lines] + [512] * extra
    count = len(sizes)
    zeros = np.zeros(count, dtype=np.int64)
    return tapes.Tape(
        description=tapes.Description(
            workload="lines",
            micro_batch_size=batch,
            image_size=1,
            spec=StepSpec(precision="fp32"),
            parameters=0,
            objects_per_image=0,
            origin="predicted",
        ),
        events=tapes.Events(
            kind=zeros.astype(np.int8),
            block=np.arange(count, dtype=np.int32),
            requested_bytes=np.array(sizes, dtype=np.int64),
            asks=np.full(count, tapes.KNOWN, dtype=np.int8),
            about=np.zeros(count, dtype=np.int32),
            operator=zeros.astype(np.int32),
            section=zeros.astype(np.int8),
        ),
        operators=tapes.Operators(
            name=np.zeros(1, dtype=np.int32),
            module=np.zeros(1, dtype=np.int32),
            section=np.zeros(1, dtype=np.int8),
            phase=np.zeros(1, dtype=np.int8),
            flops=np.array([batch], dtype=np.int64),
            moved_bytes=np.array([batch], dtype=np.int64),
        ),
        block_category=np.zeros(count, dtype=np.int8),
        operator_names=("lines",),
        modules=(),
        convolutions=(),
    )


@given(st.lists(st.tuples(_bytes, _per_image), min_size=1, max_size=8), _range, st.data())
def test_the_fit_recovers_the_lines_it_was_given(lines, ends, data):
    """Integer lines come back exactly at every batch of the range, and beyond its end."""
    fitted = fit(lambda batches: {b: _tape(lines, b) for b in batches}, *ends)
    batch = data.draw(st.integers(ends[0], ends[1] + 100))
    if ends[0] == ends[1]:
        batch = ends[0]

    assert [a + b * batch for a, b in lines] == fitted.tape(batch).events.requested_bytes.tolist()
    assert {} == fitted.residual_bytes
    assert len(fitted.recorded_batches) <= 4


@given(st.lists(st.integers(2, 80), max_size=3, unique=True), _range, st.data())
@settings(deadline=None)
def test_the_fit_finds_every_change_of_structure(breaks, ends, data):
    """Between its breaks a program is recovered exactly, whichever batches the breaks are at."""
    lines = [(1 << 20, 4096), (0, 12)]
    smallest, largest = ends
    fitted = fit(lambda batches: {b: _tape(lines, b, breaks) for b in batches}, smallest, largest)
    batch = data.draw(st.integers(smallest, largest))

    expected = _tape(lines, batch, breaks)

    assert expected.events.requested_bytes.tolist() == (
        fitted.tape(batch).events.requested_bytes.tolist()
    )


@given(_range, st.integers(0, 40), st.booleans(), st.data())
def test_the_fit_finds_a_structure_that_alternates(ends, beyond, contiguous_one, data):
    """Odd and even batches are told apart with few recordings, also where batch 1 is special."""
    smallest, largest = ends
    breaks = (2, 2, 2) if contiguous_one else ()
    lines = [(1 << 20, 4096), (0, 12)]
    fitted = fit(
        lambda batches: {b: _tape(lines, b, breaks, alternates=True) for b in batches},
        smallest,
        largest,
        lambda *_: largest + beyond,
    )
    last = largest + beyond if largest > smallest + 1 else largest
    batch = data.draw(st.integers(smallest, last))
    expected = _tape(lines, batch, breaks, alternates=True)

    assert expected.events.requested_bytes.tolist() == (
        fitted.tape(batch).events.requested_bytes.tolist()
    )
    assert len(fitted.recorded_batches) <= 4 + 2 * (largest + beyond).bit_length()


@given(st.lists(st.integers(2, 80), max_size=3, unique=True), _range)
def test_the_pieces_cover_the_range_without_gaps(breaks, ends):
    """Each batch belongs to one stretch, in ascending order."""
    fitted = fit(lambda batches: {b: _tape([(1, 1)], b, breaks) for b in batches}, *ends)
    pieces = fitted.pieces

    assert ends == (pieces[0].first_batch, pieces[-1].last_batch)
    for left, right in itertools.pairwise(pieces):
        assert left.last_batch + 1 == right.first_batch
