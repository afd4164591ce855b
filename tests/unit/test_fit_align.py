"""Two tapes that differ in temporaries alone are given one structure."""

from dataclasses import replace

import numpy as np
import pytest

from memplan import tape as tapes
from memplan.fit.align import aligned, same_operators, same_structure
from memplan.spec import StepSpec

ALLOCATE, FREE = tapes.ALLOCATE, tapes.FREE


def tape(*operators):
    """Return a tape of operators, each a list of events: kind, block and bytes."""
    rows = [
        (kind, block, size, index)
        for index, events in enumerate(operators)
        for kind, block, size in events
    ]
    kind, block, size, operator = (
        np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)
    )
    count = len(operators)
    zeros = np.zeros(count, dtype=np.int32)
    return tapes.Tape(
        description=tapes.Description(
            workload="by hand",
            micro_batch_size=1,
            image_size=1,
            spec=StepSpec(precision="fp32"),
            parameters=0,
            objects_per_image=0,
            origin="predicted",
        ),
        events=tapes.Events(
            kind=kind.astype(np.int8),
            block=block.astype(np.int32),
            requested_bytes=size,
            asks=np.full(len(rows), tapes.KNOWN, dtype=np.int8),
            about=np.zeros(len(rows), dtype=np.int32),
            operator=operator.astype(np.int32),
            section=np.zeros(len(rows), dtype=np.int8),
        ),
        operators=tapes.Operators(
            name=np.arange(count, dtype=np.int32),
            module=zeros - 1,
            section=zeros.astype(np.int8),
            phase=zeros.astype(np.int8),
            flops=zeros.astype(np.int64),
            moved_bytes=zeros.astype(np.int64),
        ),
        block_category=np.arange(block.max() + 1, dtype=np.int8),
        operator_names=tuple(f"operator {index}" for index in range(count)),
        modules=(),
        convolutions=(),
    )


PLAIN = tape([(ALLOCATE, 0, 100)], [(ALLOCATE, 1, 10), (FREE, 0, 0)])
SHARED = tape(
    [(ALLOCATE, 0, 200)],
    [
        *((ALLOCATE, 1, 10), (ALLOCATE, 2, 64), (ALLOCATE, 3, 4)),
        *((FREE, 2, 0), (FREE, 3, 0), (FREE, 0, 0)),
    ],
)


def test_a_temporary_that_one_tape_lacks_takes_no_bytes_there():
    """Each keeps its own sizes, the structure is that of the one with more."""
    plain, shared = aligned(PLAIN, SHARED)

    assert same_structure(plain, shared)
    assert same_structure(SHARED, shared)
    assert [100, 10, 0, 0, 0, 0, 0] == plain.events.requested_bytes.tolist()
    assert [200, 10, 64, 4, 0, 0, 0] == shared.events.requested_bytes.tolist()


def test_the_order_of_the_two_does_not_matter():
    """The tape with more may stand first."""
    shared, plain = aligned(SHARED, PLAIN)

    assert [100, 10, 0, 0, 0, 0, 0] == plain.events.requested_bytes.tolist()
    assert same_structure(SHARED, shared)


def test_blocks_keep_their_categories():
    """What a block is for goes with it to its new number."""
    late = tape(
        [(ALLOCATE, 0, 8), (ALLOCATE, 1, 9), (FREE, 0, 0)], [(ALLOCATE, 2, 10), (FREE, 1, 0)]
    )
    early = replace(
        tape([(ALLOCATE, 0, 9)], [(ALLOCATE, 1, 10), (FREE, 0, 0)]),
        block_category=np.array([1, 2], dtype=np.int8),
    )
    one, other = aligned(early, late)

    assert [0, 9, 0, 10, 0] == one.events.requested_bytes.tolist()
    assert [0, 1, 2] == one.block_category.tolist() == other.block_category.tolist()
    assert late.events.block.tolist() == one.events.block.tolist()


@pytest.mark.parametrize(
    "other",
    [
        tape([(ALLOCATE, 0, 1)]),
        tape([(ALLOCATE, 0, 1)], [(ALLOCATE, 1, 1)]),
        tape([(ALLOCATE, 0, 1), (FREE, 0, 0)], [(ALLOCATE, 1, 1)]),
        tape([(ALLOCATE, 0, 1)], [(ALLOCATE, 1, 1), (ALLOCATE, 2, 1), (FREE, 0, 0)]),
        tape([(ALLOCATE, 0, 1)], [(ALLOCATE, 1, 1), (FREE, 1, 0)]),
    ],
    ids=["operators", "one free less", "freed earlier", "kept", "another freed"],
)
def test_other_differences_are_another_structure(other):
    """What an operator keeps, and when a tensor goes, is not made up."""
    assert aligned(PLAIN, other) is None
    assert aligned(other, PLAIN) is None


def test_equal_tapes_are_left_as_they_are():
    """Nothing is rebuilt where nothing differs."""
    assert (PLAIN, PLAIN) == aligned(PLAIN, PLAIN)
    assert same_operators(PLAIN, SHARED)
    assert not same_structure(PLAIN, SHARED)
