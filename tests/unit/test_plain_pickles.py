"""Pickles of plain data, read piece by piece: as the standard library reads them, and no others."""

import io
import pickle
import random
import struct

import pytest

from memplan.files.pickles import BadPickleError
from memplan.files.plain_pickles import NamingPickleError, PlainReader

NUMBERS = (0, 1, 255, 256, 65_536, -1, 2**31, -(2**31), 2**47, 2**63, -(2**70), 3**900)
TEXTS = ("", "a\nb", "é\\u00e9", "x" * 300, "日本", "frames", "line")


class Kept:
    """Keeps lists and dictionaries as they are."""

    def kept(self, read):
        """Return the dictionary."""
        return read

    def extended(self, container, items):
        """Return the list with the items."""
        container.extend(items)
        return container


def read(data, size=1 << 20, store=None):
    """Return what is read of bytes that come in pieces of a size."""
    file = io.BytesIO(data)
    return PlainReader(lambda most: file.read(min(most, size)), store or Kept()).load()


def plain(rng, depth=0):
    """Return plain data of a few levels."""
    kind = rng.randrange(9 if depth < 4 else 5)
    if kind < 5:
        values = rng.choice(NUMBERS), rng.random() * 1e9, rng.choice((None, True, False))
        return (*values, rng.choice(TEXTS), rng.randrange(10**6))[kind]
    items = [plain(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 7, 40)))]
    if kind == 5:
        return tuple(items)
    if kind == 6:
        return {rng.choice(("a", "b", 1, 2.5, None, f"k{at}")): it for at, it in enumerate(items)}
    return items


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps])
def test_what_is_read_is_what_the_standard_library_reads(protocol, dumps):
    """Numbers, texts and containers, some of them referred to again, in pieces of any size."""
    for seed in range(25):
        rng = random.Random(seed)
        values = [plain(rng) for _ in range(6)]
        data = dumps([*values, values[0], *([values[:4], values[:4]])], protocol)

        expected = pickle.loads(data)
        assert expected == read(data, rng.choice((1, 3, 50, 1 << 20)))


def test_more_items_than_a_pickler_writes_at_once_are_read():
    """Lists and dictionaries come in batches of a thousand."""
    values = [list(range(3_500)), {str(at): at for at in range(2_500)}]
    assert values == read(pickle.dumps(values))


def test_what_is_referred_to_again_is_one_object():
    """A list within itself, and one that stands twice."""
    inner = [1]
    loop = [inner, inner]
    loop.append(loop)
    found = read(pickle.dumps(loop))

    assert found[0] is found[1]
    assert found[2] is found


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [print, range(3), 1j, {1, 2}, bytearray(b"x"), object()])
def test_other_objects_are_refused(protocol, value):
    """Nothing is called and no name is looked up, whatever protocol it is written in."""
    with pytest.raises(BadPickleError):
        read(pickle.dumps([1, value], protocol))


def test_names_are_told_in_the_refusal():
    """A reader learns what the file would have run."""
    with pytest.raises(NamingPickleError, match=r"names os\.system, .* was not run"):
        read(b"cos\nsystem\n(S'true'\ntR.")


def test_a_file_cut_short_anywhere_is_refused():
    """No prefix of a pickle is taken for one."""
    for protocol in range(6):
        data = pickle.dumps([{"a": [1, 2.5, "text"] * 3}, 1 << 80, ("x", None)], protocol)
        for end in range(len(data)):
            with pytest.raises(BadPickleError):
                read(data[:end])


def test_no_damage_ends_in_another_error():
    """Bytes that are flipped, or at random, are refused or read as plain data."""
    data = pickle.dumps([{"a": [1, 2.5, "text"] * 3}, 1 << 80, ("x", None), [[1]] * 9])
    for seed in range(3_000):
        rng = random.Random(seed)
        broken = bytearray(data if seed % 2 else rng.randbytes(60))
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            read(bytes(broken))
        except BadPickleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most are refused, not all


@pytest.mark.parametrize(
    "data",
    [
        b"\x8d" + struct.pack("<Q", 1 << 62) + b"x.",  # a text of exabytes
        b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"1.",  # a number of gigabytes
        b"\x8b" + struct.pack("<i", -5) + b".",
        b"]r" + struct.pack("<I", 1 << 31) + b".",  # an object numbered two billion
        b"(" * 10_000 + b".",
        b"]h\x07.",
        b"N" * 40 + b"g-1\n.",
    ],
)
def test_what_declares_more_than_it_has_is_refused_at_once(data):
    """No room is made for what is not there."""
    with pytest.raises(BadPickleError):
        read(data)


class Sums(list):
    """A list of its own kind, which holds one number."""


class Added(Kept):
    """Keeps lists of numbers as their sum, and dictionaries as their length."""

    def kept(self, read):
        """Return how many entries there are."""
        return len(read)

    def extended(self, container, items):
        """Return a sum where items are numbers."""
        if not isinstance(container, Sums) and not all(isinstance(item, int) for item in items):
            return super().extended(container, items)
        sums = container if isinstance(container, Sums) else Sums([0])
        sums[0] += sum(items)
        return sums


def test_a_caller_keeps_what_it_reads_in_its_own_form():
    """Wherever the file refers to a list, what stands for it is found."""
    numbers, one = [1, 2, 3], [5]
    data = pickle.dumps(["", numbers, {"a": 1, "b": 2}, numbers, list(range(2_001)), one, one])

    assert ["", [6], 2, [6], [2_001_000], [5], [5]] == read(data, store=Added())


def test_a_dictionary_that_was_handed_over_is_not_found_again():
    """Its place in the memo is gone, and with it its memory."""
    entry = {"a": 1, "b": 2}
    with pytest.raises(BadPickleError, match="holds as an entry already"):
        read(pickle.dumps([entry, entry]), store=Added())


def test_a_list_that_holds_itself_alone_is_read():
    """Its reference to itself comes before it has anything to refer to."""
    loop = []
    loop += [loop, loop]
    found = read(pickle.dumps(loop))

    assert [found, found] == list.copy(found)
    assert found[0] is found


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 300_000,  # hashed as deep as it nests, which ends the process
        # 2^60 times
        b")\x940" + b"".join(b"h%ch%c\x86\x940" % (at, at) for at in range(60)) + b"h\x3c",
        b"\x8b" + struct.pack("<i", 1 << 22) + b"\x01" * (1 << 22),  # anew each time
    ],
    ids=["deep", "shared", "long"],
)
def test_a_key_that_takes_long_to_hash_is_refused(key):
    """Keys of plain data are texts and short numbers."""
    with pytest.raises(BadPickleError, match=r"neither a text nor a number|declares a number"):
        read(b"}" + key + b"Ns.")


@pytest.mark.parametrize(
    "data",
    [
        b"F" + b"x" * 100_000 + b"\n.",
        b"c" + b"x" * 100_000 + b"\nsystem\n.",
        b"\x8c\x05a\nb\x1bcX\x03\x00\x00\x00\xed\xa0\x80\x93.",  # half a text
        b"]\x85\x8c\x01x\x93.",  # a name that is a list
    ],
    ids=["float", "long", "unprintable", "list"],
)
def test_a_refusal_is_one_short_line(data):
    """Whatever stands in the file, the message can be printed."""
    with pytest.raises(BadPickleError) as raised:
        read(data)

    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


def test_a_tuple_of_more_than_there_is_is_refused():
    """Two items were taken for three."""
    with pytest.raises(BadPickleError, match="a tuple of more than there is"):
        read(b"K\x01K\x02\x87.")
