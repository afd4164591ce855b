"""Files of users are read within bounds: regular, small enough, text, YAML without surprises."""

import os
import stat
from pathlib import Path

import pytest

from memplan.errors import BadInputError, BadTapeError, UsageError
from memplan.files import MIB, Source, brief, decoded, is_there, replaced, write_text
from memplan.files.yaml_text import NotYamlError, parse_yaml
from memplan.training import TrainOptions


def _source(path, **more):
    return Source(path=path, what="a thing", way_out="Do this.", **more)


def _refusal(path, **more):
    with pytest.raises(BadInputError) as caught:
        _source(path, **more).content()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_regular_file_is_read(tmp_path):
    """Text without its byte-order mark, and bytes as they are."""
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")

    assert "a: 1\n" == _source(path).text()
    assert {"a": 1} == _source(path).yaml()
    assert path.read_bytes() == _source(path).content()


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "/dev/random"])
def test_devices_are_refused_by_name(name):
    """They have no end."""
    assert f"{name} cannot be read as a thing: it is a device" in _refusal(Path(name))


def test_pipes_folders_and_links_to_them_are_refused_at_once(tmp_path):
    """Nobody waits for what will not come."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert "it is a pipe" in _refusal(tmp_path / "pipe")
    assert "it is a pipe" in _refusal(tmp_path / "link")
    assert "it is a folder" in _refusal(tmp_path)
    assert "symbolic links" in _refusal(tmp_path / "loop")


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a/" * 3000, "\udcff", "\n", "\x1b[2J"])
def test_paths_that_are_none_are_one_line(tmp_path, name):
    """NUL, too many characters, and characters that would move the cursor."""
    assert not is_there(tmp_path / name)
    assert _refusal(tmp_path / name).isprintable()


def test_large_files_are_refused_before_they_are_read(tmp_path):
    """A file with a hole in it takes no disk and would take all memory."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    assert "such a file has at most 1.00 MiB" in _refusal(path, most_bytes=MIB)


def test_files_that_say_they_are_empty_are_bounded_as_well():
    """As those of /proc do."""
    assert "it has more than 4 B" in _refusal(Path("/proc/self/status"), most_bytes=4)


def test_the_error_is_of_the_class_asked_for(tmp_path):
    """Tapes and inputs fail by their own names."""
    with pytest.raises(BadTapeError, match=r"does not exist\. Check the path"):
        _source(tmp_path / "none", error=BadTapeError).content()


@pytest.mark.parametrize("content", [b"a\xff", "a".encode("utf-16"), b"\xed\xa0\x80"])
def test_other_encodings_are_said(tmp_path, content):
    """The first byte that is no UTF-8 is named."""
    path = tmp_path / "x"
    path.write_bytes(content)

    with pytest.raises(BadInputError, match="no text in UTF-8"):
        _source(path).text()


def _laughs(depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 2024-02-30", "month"),
        ("a: !!int x", "ValueError"),
        ("a: !!bool x", "KeyError"),
        ("a: !!timestamp x", "Error"),
        ("? [a]\n: b", "unhashable"),
        ("a: !!python/object/apply:os.getcwd []", "constructor"),
        (_laughs(12), "once aliases are followed"),
        ("a: &a {b: *a}", "names what holds it"),
        ("&a [*a]", "names what holds it"),
        ("[" * 60 + "]" * 60, "deep"),
        ("[" * 1_000_000, "deep"),
        ("- " * 100_000 + "x", "deep"),
        ("a: 1" + ":1" * 200_000, "characters"),
        ("a: " + "1" * 5000, "characters"),
        ("a: [", "in line"),
        ("a: *b", "alias"),
        ("---\na\n---\nb", "document"),
        ("a\0b", "control characters"),
    ],
)
def test_yaml_that_is_none_or_too_much_is_one_error(text, reason):
    """PyYAML's own errors, and those it lets through."""
    with pytest.raises(NotYamlError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("[1, 1.5, yes, null, x]", [1, 1.5, True, None, "x"]),
    ],
)
def test_yaml_is_read_as_ever(text, value):
    """Aliases and merges within bounds mean what they mean."""
    assert value == parse_yaml(text)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[NaN]", b'{"a": 1', b'"\xff"', b"", b"1 2"])
def test_json_that_is_none_is_one_line(tmp_path, content):
    """Depth, numbers that are none, and damage."""
    path = tmp_path / "x.json"
    path.write_bytes(content)

    with pytest.raises(BadInputError) as caught:
        decoded(_source(path))
    assert "\n" not in str(caught.value)


def test_a_value_is_shown_briefly():
    """Messages are a line, whatever the value."""
    assert 80 == len(brief("x" * 1000))
    assert "a int" == brief(10**5000)


def test_a_file_takes_its_place_whole(tmp_path):
    """A failure leaves what was there, and nothing else."""
    path = tmp_path / "x"
    write_text(path, "before")

    def fail():
        with replaced(path) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()

    assert "before" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_a_written_file_has_the_mode_that_the_shell_would_give(tmp_path):
    """A random name is no reason for others to lose access."""
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)

    assert 0o644 == stat.S_IMODE((tmp_path / "x").stat().st_mode)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    """What it names stays."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "x").symlink_to("precious")
    write_text(tmp_path / "x", "ours")

    assert "mine" == (tmp_path / "precious").read_text()
    assert "ours" == (tmp_path / "x").read_text()


def test_a_full_device_is_an_error_and_stays():
    """What is no regular file is written to as it is."""
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_text(full, "x")

    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("batch", 1_000_000_000, "above 65536"),
        ("seed", 2**64, "above 9223372036854775807"),
        ("seed", -1, "below 0"),
        ("save_every", float("nan"), "is no number"),
        ("save_every", float("inf"), "is no number"),
        ("image_size", 10**9, "above 16384"),
        ("workers", 10**6, "above 1024"),
        pytest.param("epochs", 10**5000, "above 1000000", id="epochs of many digits"),
        ("freeze", (10**9,), "above 100000"),
    ],
)
def test_numbers_have_a_bound_that_the_message_names(tmp_path, option, value, bound):
    """Beyond it nothing is tried."""
    with pytest.raises(UsageError, match=bound):
        TrainOptions(data=tmp_path, **{option: value})
