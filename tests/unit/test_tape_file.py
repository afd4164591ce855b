"""A tape survives its file; anything else in its place is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from trace_toy import Counted

from memplan import tape as tapes
from memplan.errors import BadTapeError
from memplan.spec import StepSpec
from memplan.tape import is_tape, load_tape
from memplan.trace.record import record


@pytest.fixture(name="tape", scope="module")
def _tape():
    settings = StepSpec(recompute=("0", "3"), precision="amp-bf16")
    return record(Counted(keeps_average=True, validates=True), 2, settings)


@pytest.fixture(name="path")
def _path(tape, tmp_path):
    path = tmp_path / "toy.tape"
    tape.save(path)
    return path


def test_a_tape_read_back_is_the_tape_written(tape, path):
    """Every column, name, module, convolution and version comes back, with its type."""
    loaded = load_tape(path)

    assert tape.description == loaded.description
    for name in ("operator_names", "modules", "convolutions", "launches"):
        assert getattr(tape, name) == getattr(loaded, name)
    for name in ("events", "operators"):
        for column, values in vars(getattr(tape, name)).items():
            actual = getattr(getattr(loaded, name), column)
            assert np.array_equal(values, actual), column
            assert values.dtype == actual.dtype
    assert np.array_equal(tape.block_category, loaded.block_category)
    assert len(tape) == len(loaded)


def test_a_tape_is_told_from_other_files(path, tmp_path):
    """A zip without the tape's header, and a file that is no zip, are no tapes."""
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(1))
    text = tmp_path / "text"
    text.write_text("no")

    assert [True, False, False] == [is_tape(path), is_tape(other), is_tape(text)]


def _rewritten(path, change):
    with np.load(path) as archive:
        columns = {name: archive[name] for name in archive.files}
    header = json.loads(columns["header"].tobytes())
    change(header, columns)
    columns["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **columns)


@pytest.mark.parametrize("schema", ["memplan.tape/1", "memplan.tape/7"])
def test_an_unknown_schema_is_refused_by_name(path, schema):
    """An older or later version's file says which schema it has and which is read."""
    _rewritten(path, lambda header, _: header.update(schema=schema))

    with pytest.raises(BadTapeError, match=f"schema '{schema}'.*reads '{tapes.SCHEMA}'"):
        load_tape(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    """A file cut short is one line to the user, wherever it was cut."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(BadTapeError, match="cannot be read as a tape"):
        load_tape(path)


def test_damaged_bytes_are_refused(path):
    """A file whose middle was overwritten is refused too."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)

    with pytest.raises(BadTapeError, match="cannot be read as a tape"):
        load_tape(path)


def _ask(question, about):
    def change(header, columns):
        columns["events.asks"][0] = tapes.QUESTIONS.index(question)
        columns["events.about"][0] = len(header[about]) if isinstance(about, str) else about

    return change


@pytest.mark.parametrize(
    ("question", "about"),
    [("convolution", "convolutions"), ("reduction_results", "launches"), ("known", 1),
     ("reduction_semaphores", -1)],
)  # fmt: skip
def test_a_question_about_nothing_is_refused(path, question, about):
    """What an event asks about must be of the question's kind."""
    _rewritten(path, _ask(question, about))

    with pytest.raises(BadTapeError, match=f"no subject of '{question}'"):
        load_tape(path)


def test_a_launch_that_makes_no_sense_is_refused(path):
    """Its lengths must agree before a card is asked about it."""
    _rewritten(path, lambda header, _: header["launches"][0]["sizes"].append(3))

    with pytest.raises(BadTapeError, match="several lengths"):
        load_tape(path)


@pytest.mark.parametrize("missing", ["events.kind", "operators.flops", "block_category"])
def test_a_missing_column_is_refused(path, missing):
    """A tape without one of its columns is no tape."""
    _rewritten(path, lambda _, columns: columns.pop(missing))

    with pytest.raises(BadTapeError, match="cannot be read as a tape"):
        load_tape(path)


def test_a_header_that_is_no_object_is_refused(path):
    """JSON of another kind is refused like any damage."""
    with np.load(path) as archive:
        columns = {name: archive[name] for name in archive.files}
    columns["header"] = np.frombuffer(b"[1, 2]", dtype=np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **columns)

    with pytest.raises(BadTapeError):
        load_tape(path)


def test_a_file_with_pickled_objects_is_refused_unread(tmp_path):
    """Nothing in a tape is ever unpickled."""
    path = tmp_path / "evil.tape"
    with path.open("wb") as file:
        np.savez(file, header=np.array([print], dtype=object))

    with pytest.raises(BadTapeError, match="cannot be read as a tape"):
        load_tape(path)


def test_a_missing_file_says_what_writes_one(tmp_path):
    """The way out is in the message."""
    with pytest.raises(BadTapeError, match=r"nowhere\.tape does not exist.*memplan probe"):
        load_tape(tmp_path / "nowhere.tape")


def test_a_folder_is_refused(tmp_path):
    """A folder in place of a file is one line too."""
    with pytest.raises(BadTapeError, match="cannot be read as a tape"):
        load_tape(tmp_path)


def test_saving_twice_gives_the_same_content(tape, tmp_path):
    """What is written depends on the tape alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    tape.save(one)
    replace(tape).save(two)

    with np.load(one) as first, np.load(two) as second:
        assert first.files == second.files
        assert all(np.array_equal(first[name], second[name]) for name in first.files)
