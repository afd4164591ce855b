"""Reductions, sorts and indexing: bytes counted by hand from the kernels' sources."""

from dataclasses import replace

import pytest
import torch
from test_trace_operators import A100, asked_by, on_an_a100

from memplan.launches.radix_sort import RadixSort
from memplan.trace import operators
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.operators import Output, Release, Temporary

aten = torch.ops.aten


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _empty(*shape, dtype=torch.float32):
    return torch.empty(shape, device=DEVICE, dtype=dtype)


def test_a_sum_of_booleans_copies_them_as_integers():
    """A million flags are 8 MiB of int64; 128 blocks of 512 threads keep 8 bytes each."""
    with fake_cuda():
        asked = asked_by(aten.sum.default, _empty(1 << 20, dtype=torch.bool))

    assert [Output(0), Temporary(8 << 20), Temporary(8 * 128), Temporary(4)] == asked


def test_half_precision_is_summed_into_single_without_a_copy():
    """Few numbers fit one block, so there is no buffer either."""
    with fake_cuda():
        halves = _empty(4, 100, dtype=torch.float16)
        asked = on_an_a100(operators.requests(aten.sum.dim_IntList, [halves, [1]], [_empty(4)]))

    assert [Output(0)] == asked


def test_a_sum_down_a_tall_matrix_keeps_partial_rows():
    """64 columns by 512 blocks by 16 lanes of 4 values, 4 bytes each."""
    with fake_cuda():
        asked = asked_by(aten.sum.dim_IntList, _empty(65536, 64), [0])

    assert [Output(0), Temporary(4 * 64 * 512 * 16 * 4), Temporary(4)] == asked


def test_the_place_of_a_maximum_is_kept_with_its_value():
    """A pair of float and int64 is 16 bytes; a tensor with holes is made flat first."""
    with fake_cuda():
        flat = asked_by(aten.argmax.default, _empty(1 << 20))
        holes = asked_by(aten.argmax.default, _empty(8, 8)[:, :4])

    assert [Output(0), Temporary(16 * 128), Temporary(4)] == flat
    assert [Output(0), Temporary(8 * 4 * 4)] == holes


def _sorted_bytes(count, key_bytes, value_bytes, greatest_key=0, card=A100):
    sort = RadixSort(
        count=count, key_bytes=key_bytes, value_bytes=value_bytes, greatest_key=greatest_key
    )
    return sort.scratch_bytes(card)[0]


def test_a_radix_sort_keeps_a_second_copy_of_its_pairs():
    """24 bits are 3 passes of 256 digits; 27 tiles of 3840 items look back at each other."""
    expected = 3 * 256 * 8 + 27 * 256 * 4 + 2 * 800_000 + 256 + 255

    assert expected == _sorted_bytes(100_000, 8, 8, (1 << 24) - 1)
    assert 1 == _sorted_bytes(2304, 8, 8)


@pytest.mark.parametrize(
    ("capability", "multiprocessors", "threads", "expected"),
    [
        ((7, 5), 40, 1024, 914_943),
        ((8, 0), 108, 2048, 4_519_423),
        ((8, 6), 82, 1536, 2_614_783),
        ((9, 0), 132, 2048, 56063),
    ],
)
def test_narrow_keys_are_counted_before_hopper(capability, multiprocessors, threads, expected):
    """5000 keys of half precision, as PyTorch's own host code asks on phantom cards."""
    card = replace(
        A100,
        compute_capability=capability,
        multiprocessors=multiprocessors,
        threads_per_multiprocessor=threads,
    )

    assert expected == _sorted_bytes(5000, 2, 8, card=card)


def test_short_rows_are_sorted_where_they_are():
    """Up to 4096 items fit a block's shared memory; their numbers of 8 bytes are copied in."""
    with fake_cuda():
        asked = asked_by(aten.sort.default, _empty(10, 4096))

    assert [Output(0), Output(1), Temporary(8 * 4096)] == asked


def test_one_long_row_is_sorted_with_its_positions():
    """The positions are 8 bytes an item beside the radix sort's own scratch."""
    with fake_cuda():
        asked = asked_by(aten.sort.default, _empty(10_000))
    expected = [Temporary(80_000), Temporary(_sorted_bytes(10_000, 4, 8)), Release()]

    assert [Output(0), Output(1), *expected] == asked


def test_topk_shares_long_rows_among_blocks():
    """320 rows of 8400 get 17 items a thread, so 2 blocks a row count 256 digits of 2 bytes."""
    with fake_cuda():
        asked = asked_by(aten.topk.default, _empty(320, 8400), 10)
    counters = [320 * 4, 320 * 8, 320 * 8, 640 * 512, 320 * 1024, 640 * 4, 640 * 4]
    scan = [Temporary(768 + 256 + 255), Release()]

    assert [Output(0), Output(1), *map(Temporary, counters), *scan, *scan, Release(7)] == asked


def test_topk_of_short_rows_needs_nothing():
    """A block finds them by itself."""
    with fake_cuda():
        assert [Output(0), Output(1)] == asked_by(aten.topk.default, _empty(10, 8400), 10)


def test_topk_has_one_structure_whether_blocks_share_its_rows_or_not():
    """Its form changes with the number of rows, so with the batch; its events do not."""
    with fake_cuda():
        requests = [
            list(operators.requests(aten.topk.default, (rows, 10), aten.topk.default(rows, 10)))
            for rows in (_empty(10, 8400), _empty(320, 8400))
        ]
    few, many = ([type(one) for one in of_rows] for of_rows in requests)

    assert few == many


def test_a_running_count_of_flags_copies_them_as_integers():
    """Rows are scanned by a kernel that needs no scratch."""
    with fake_cuda():
        asked = asked_by(aten.cumsum.default, _empty(4, 100, dtype=torch.bool), 1)

    assert [Output(0), Temporary(3200)] == asked


def _pairs():
    images = torch.empty(8, 1, device=DEVICE, dtype=torch.int64)
    return images, torch.empty(8, 10, device=DEVICE, dtype=torch.int64)


def test_indices_laid_out_unlike_are_copied_before_the_output():
    """The column of images is spread to 80 positions; the other index is as it must be."""
    with fake_cuda():
        asked = asked_by(aten.index.Tensor, _empty(8, 100, 64), list(_pairs()))

    assert [Temporary(640), Output(0)] == asked


def test_short_indices_are_made_long():
    """Indices of 32 bits become 64."""
    with fake_cuda():
        asked = asked_by(aten.index.Tensor, _empty(100, 4), [_empty(7, dtype=torch.int32)])

    assert [Temporary(56), Output(0)] == asked


# An extreme of an index, and whether it is within bounds.
BOUND = [Temporary(8), Temporary(1), Release(), Release()]
SORTED_WRITES = [
    *[*BOUND, *BOUND, Temporary(640), Temporary(640), Release(1, keep=1)],
    *[*BOUND, *BOUND, Temporary(640), Temporary(640), Release(1, keep=1), Release()],
    *[Temporary(640)] * 3,
    Temporary(1),
]
FILLED = [Temporary(8), Release()]


def test_adding_by_index_sorts_the_positions():
    """Positions, then sorted ones, their origins and a range; 80 pairs sort in one tile."""
    with fake_cuda():
        tensor, values = _empty(8, 100, 64), _empty(8, 10, 64)
        asked = asked_by(aten.index_put.default, tensor, list(_pairs()), values, True)

    assert [Output(0), *SORTED_WRITES] == asked


@pytest.mark.usefixtures("_deterministic")
def test_deterministic_writes_sort_the_positions_too():
    """Without the setting only the unlike index is copied."""
    with fake_cuda():
        tensor, values = _empty(8, 100, 64), _empty(8, 10, 64)
        arguments = [tensor, list(_pairs()), values, False]
        asked = on_an_a100(operators.requests(aten.index_put_.default, arguments, []))
        torch.use_deterministic_algorithms(False)
        usual = on_an_a100(operators.requests(aten.index_put_.default, arguments, []))

    assert [*SORTED_WRITES[:-1], *FILLED, SORTED_WRITES[-1]] == asked
    assert [Temporary(640)] == usual


@pytest.mark.usefixtures("_deterministic")
def test_a_deterministic_scatter_spreads_its_index():
    """A range for the other dimension comes first, then the sorted writes."""
    with fake_cuda():
        tensor, index = _empty(4, 50), _empty(4, 6, dtype=torch.int64)
        asked = on_an_a100(
            operators.requests(aten.scatter_.src, [tensor, 1, index, _empty(4, 6)], [])
        )
        torch.use_deterministic_algorithms(False)
        usual = on_an_a100(
            operators.requests(aten.scatter_.src, [tensor, 1, index, _empty(4, 6)], [])
        )

    # Its bounds are found in a copy that is laid out flat.
    bound = [Temporary(8), Temporary(192), Release(), Temporary(1), Release(), Release()]
    assert [Temporary(32), *FILLED, *bound] == asked[:9]
    assert [] == usual


def test_norms_of_a_list_keep_a_number_a_chunk():
    """The longest of two tensors has two chunks of 65536, so both get room for two."""
    with fake_cuda():
        asked = asked_by(aten._foreach_norm.Scalar, [_empty(70_000), _empty(3)], 2)

    assert [Temporary(16), Output(0), Output(1)] == asked


@pytest.mark.parametrize(
    "name", ["_foreach_add_", "_foreach_lerp_", "_foreach_sqrt", "_foreach_mul"]
)
def test_other_operators_over_lists_make_their_outputs_alone(name):
    """Slow or fast, they allocate nothing else."""
    packet = getattr(aten, name)

    assert all(
        operators.is_understood(getattr(packet, o)) for o in packet.overloads() if o != "out"
    )


def test_a_masked_scatter_keeps_the_position_of_every_element():
    """100 numbers: 8 bytes each for positions, the scan's scratch in between, no copies."""
    with fake_cuda():
        numbers, mask = _empty(10, 10), _empty(10, 10, dtype=torch.bool)
        asked = asked_by(aten.masked_scatter.default, numbers, mask, _empty(30))

    assert [Output(0), Temporary(800)] == asked[:2]
    assert [Temporary, Release] == [type(request) for request in asked[2:]]
