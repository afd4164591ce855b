"""`memplan replay` repeats tapes and PyTorch snapshots, and refuses what is neither."""

import os
import pickle

import pytest
from cli_inside import SMALL, memory_values, runner
from golden_snapshots import golden_content

SIMULATED = {
    *("allocated_peak_bytes", "reserved_peak_bytes", "num_alloc_retries", "num_ooms"),
    "inactive_split_peak_bytes",
}
CARDS = ("t4", "h100-80gb", "rtx-4090")
FIELDS = {"schema", "file", "events", "recorded", "simulated"}


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    """A tape of ResNet-18 at batch 64."""
    import memplan

    path = tmp_path_factory.mktemp("replay") / "step.tape"
    recorded = memplan.record("torchvision:resnet18", batch=64, img=64)
    recorded.save(path)
    return path


@pytest.fixture
def snapshot(tmp_path):
    """A golden run of the released allocator, laid out as PyTorch 2.11 dumps it."""
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps(golden_content("native")))
    return path


def test_tape_replays_to_the_probes_peaks(memplan, tmp_path):
    """A tape that `probe --tape` saved gives the probe's peaks on the probe's card."""
    path = tmp_path / "step.tape"
    probe = memplan(
        *("probe", *SMALL, "--batch", 2, "--gpu", "t4", "--json", "--tape", path),
        *("--set", "num_classes=10"),
    )
    answer = memplan("replay", path, "--gpu", "t4", "--json").json

    row = probe.json["batches"][0]
    assert f"Wrote {path}\nNext: memplan replay {path} --gpu t4\n" == probe.err
    for name in ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes"):
        assert row[name] == answer["simulated"][name]


def test_the_tape_of_several_devices_holds_their_buckets(memplan, tmp_path):
    """A tape that `probe --devices 2 --tape` saved gives the probe's allocated bytes."""
    path = tmp_path / "step.tape"
    options = ("probe", *SMALL, "--batch", 2, "--gpu", "t4", "--json")
    row = memplan(*options, "--devices", 2, "--tape", path).json["batches"][0]
    answer = memplan("replay", path, "--gpu", "t4", "--json").json
    alone = memplan(*options).json["batches"][0]

    assert row["allocated_peak_bytes"] == answer["simulated"]["allocated_peak_bytes"]
    assert row["allocated_peak_bytes"] > alone["allocated_peak_bytes"]


def test_a_card_that_runs_other_operators_is_told_of(memplan, tmp_path):
    """A T4 has no flash attention, which was recorded; an H100 takes cuDNN's."""
    import memplan as library

    path = tmp_path / "step.tape"
    library.record("torchvision:vit_b_32", batch=1, img=224).save(path)
    notes = [memplan("replay", path, "--gpu", card, "--json").json["note"] for card in CARDS]

    assert "another kernel runs on t4" in notes[0]
    assert "another kernel runs on h100-80gb" in notes[1]
    assert not notes[2]


def test_tape_answer_has_the_promised_fields(memplan, tape):
    """JSON has the contract's fields, memory as ints, and says that it is simulated."""
    answer = memplan("replay", tape, "--gpu", "rtx-3090", "--json").json

    assert FIELDS <= set(answer)
    assert ("memplan.replay/1", str(tape), "simulated") == (
        answer["schema"],
        answer["file"],
        answer["origin"],
    )
    assert SIMULATED <= set(answer["simulated"])
    assert all(type(value) is int for _, value in memory_values(answer))
    assert answer["fits"]


def test_capacity_and_allocator_change_a_tapes_replay(memplan, tape):
    """Too little memory is told in PyTorch's words; growing segments hold less."""
    options = ("replay", tape, "--gpu", "rtx-3090", "--json")
    plain = memplan(*options).json
    tight = memplan(*options, "--capacity", "450MiB").json
    growing = memplan(*options, "--allocator", "expandable_segments:True").json

    assert (True, False) == (plain["fits"], tight["fits"])
    assert tight["out_of_memory"].startswith("CUDA out of memory. Tried to allocate ")
    assert 450 << 20 == tight["capacity_bytes"]
    assert 1 == tight["simulated"]["num_ooms"]
    reserved = [each["simulated"]["reserved_peak_bytes"] for each in (growing, plain)]
    assert reserved[0] < reserved[1]


def test_text_of_a_tape_is_a_table_and_a_verdict(memplan, tape):
    """Numbers are under a header with their unit, and the last line says whether it fits."""
    finished = memplan("replay", tape, "--gpu", "rtx-3090")

    lines = finished.out.splitlines()
    assert lines[0].startswith(f"{tape}: ")
    assert "Simulated GiB" in lines[1]
    assert "It fits." == lines[-1]


def test_snapshot_replays_as_recorded(memplan, snapshot):
    """A recorded history comes out to the byte, and the answer says so."""
    answer = memplan("replay", snapshot, "--json").json
    text = memplan("replay", snapshot).out

    assert FIELDS <= set(answer)
    assert SIMULATED <= set(answer["simulated"])
    for name in ("allocated_peak_bytes", "reserved_peak_bytes"):
        assert answer["recorded"][name] == answer["simulated"][name] > 0
    assert (0, True) == (answer["num_differing_steps"], answer["is_layout_equal"])
    assert "every address and segment equals the file's" in text


def test_snapshot_replays_under_other_settings(memplan, snapshot):
    """Capacity and options change what is simulated and leave what was recorded."""
    plain = memplan("replay", snapshot, "--json").json
    growing = memplan("replay", snapshot, "--json", "--allocator", "expandable_segments:True").json
    tight = memplan("replay", snapshot, "--json", "--capacity", "100MiB").json
    card = memplan("replay", snapshot, "--json", "--gpu", "t4").json

    assert plain["recorded"] == growing["recorded"] == tight["recorded"]
    assert growing["simulated"]["reserved_peak_bytes"] != plain["simulated"]["reserved_peak_bytes"]
    assert (False, 1) == (tight["fits"], tight["simulated"]["num_ooms"])
    assert card["capacity_bytes"] > 14 << 30


class _Malicious:
    """Runs a command when it is unpickled by a reader that runs pickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_malicious_pickle_is_refused_and_not_run(memplan, tmp_path):
    """A pickle that names a function is refused; the function is not called."""
    path, trace = tmp_path / "evil.pickle", tmp_path / "was_here"
    path.write_bytes(pickle.dumps(_Malicious(trace)))

    finished = memplan("replay", path, "--gpu", "t4")

    assert (1, "") == (finished.code, finished.out)
    assert 1 == len(finished.err.splitlines())
    assert not trace.exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_tape_is_refused_in_one_line(memplan, tape, tmp_path, part):
    """A file that was cut short is said to be unreadable."""
    whole = tape.read_bytes()
    path = tmp_path / "cut.tape"
    path.write_bytes(whole[: int(part * len(whole))])

    finished = memplan("replay", path, "--gpu", "t4")

    assert (1, "") == (finished.code, finished.out)
    assert str(path) in finished.err
    assert 1 == len(finished.err.splitlines())


def test_damaged_tape_is_refused_in_one_line(memplan, tape, tmp_path):
    """A file with changed bytes in the middle is said to be unreadable."""
    damaged = bytearray(tape.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    path = tmp_path / "damaged.tape"
    path.write_bytes(damaged)

    finished = memplan("replay", path, "--gpu", "t4")

    assert (1, "") == (finished.code, finished.out)
    assert f"Error: {path} cannot be read as a tape" in finished.err
    assert 1 == len(finished.err.splitlines())


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (1, [], "Give --gpu NAME"),
        (1, ["--gpu", "0"], "--gpu NAME"),
        (1, ["--gpu", "t44"], "'t4'"),
        (2, ["--gpu", "t4", "--capacity", "much"], "24GiB"),
        (2, ["--gpu", "t4", "--allocator", "x:1"], "'x' is unknown"),
    ],
)
def test_refusals_of_a_tape_name_the_way_out(memplan, tape, code, options, words):
    """A tape needs a card; what cannot be used ends with its exit code."""
    finished = memplan("replay", tape, *options)

    assert (code, "") == (finished.code, finished.out)
    assert words in finished.err


def test_card_that_is_not_there_is_refused_for_a_snapshot(memplan, snapshot):
    """An index means a card in this machine for a snapshot too."""
    finished = memplan("replay", snapshot, "--gpu", "0")

    assert (1, "") == (finished.code, finished.out)
    assert "--gpu NAME" in finished.err


def test_missing_file_is_refused(memplan, tmp_path):
    """A path that is not there, or is a folder, is exit code 1."""
    for path in (tmp_path / "none", tmp_path):
        finished = memplan("replay", path)
        assert (1, "") == (finished.code, finished.out)
        assert f"{path} is no file" in finished.err


def test_a_snapshot_without_history_still_shows_what_is_held(memplan, tmp_path):
    """An empty history is said, and segments and blocks are a table; exit code 0."""
    path = tmp_path / "late.pickle"
    path.write_bytes(pickle.dumps(golden_content("native") | {"device_traces": [[]]}))
    finished = memplan("replay", path)
    answer = memplan("replay", path, "--json").json

    assert (0, "") == (finished.code, finished.err)
    assert "holds no history" in finished.out
    assert "Largest free" in finished.out
    assert answer["recorded"]["reserved_bytes"] == sum(p["reserved_bytes"] for p in answer["pools"])


def test_a_history_that_cannot_be_rebuilt_still_shows_what_is_held(memplan, tmp_path):
    """Begun mid-run under expandable segments: the reason is said, the table is there."""
    content = golden_content("expandable")
    content["allocator_settings"]["expandable_segments"] = True
    content["device_traces"] = [content["device_traces"][0][200:]]
    path = tmp_path / "late.pickle"
    path.write_bytes(pickle.dumps(content))
    finished = memplan("replay", path)

    assert (0, "") == (finished.code, finished.err)
    assert "began mid-run under expandable segments" in finished.out
    assert "Largest free" in finished.out


def test_two_snapshots_are_compared(memplan, snapshot, tmp_path):
    """What grew by pool and line, as text and as JSON."""
    content = golden_content("native")
    content["segments"] = content["segments"][:-1]
    other = tmp_path / "other.pickle"
    other.write_bytes(pickle.dumps(content | {"device_traces": [[]]}))
    finished = memplan("replay", other, snapshot)
    answer = memplan("replay", other, snapshot, "--json").json

    assert (0, "") == (finished.code, finished.err)
    assert "more reserved" in finished.out
    assert {"line", "pool"} == set(answer["changes"])
    assert answer["now"]["peaks"]["reserved"] > answer["before"]["peaks"]["reserved"]


def test_a_tape_compared_with_itself_has_not_changed(memplan, tape):
    """Categories, modules and operators at the peak, all the same."""
    finished = memplan("replay", tape, tape, "--gpu", "t4")

    assert (0, "") == (finished.code, finished.err)
    assert "As much device-used" in finished.out
    assert "By operator: nothing changed." in finished.out


def test_a_third_file_is_wrong_usage(memplan, tape):
    """Two files are compared, no more."""
    assert 2 == memplan("replay", tape, tape, tape).code


def test_a_tape_is_written_as_page_and_snapshot(memplan, tape, tmp_path):
    """The snapshot replays to the tape's peaks, and its page says what the terminal says."""
    page, path = tmp_path / "life.html", tmp_path / "life.pickle"
    answer = memplan(
        *("replay", tape, "--gpu", "t4", "--json", "--report", page, "--snapshot", path)
    )
    again = memplan("replay", path, "--json", "--report", tmp_path / "again.html").json

    assert f"Wrote {path}\nWrote {page}\n" == answer.err
    for name in ("allocated_peak_bytes", "reserved_peak_bytes"):
        assert answer.json["simulated"][name] == again["simulated"][name]
    assert (0, "simulated") == (again["num_differing_steps"], again["recorded_origin"])
    assert '<figure class="timeline"' in page.read_text()
    assert "Held by (simulated)" in (tmp_path / "again.html").read_text()


def test_pages_of_snapshots_are_pdf_where_named_so(memplan, snapshot, tmp_path):
    """Of one snapshot and of two; nothing is overwritten unasked."""
    one, two = tmp_path / "one.pdf", tmp_path / "two.html"
    memplan("replay", snapshot, "--report", one)
    memplan("replay", snapshot, snapshot, "--report", two)
    again = memplan("replay", snapshot, "--report", one)

    assert one.read_bytes().startswith(b"%PDF")
    assert "What grew" in two.read_text()
    assert (1, "") == (again.code, again.out)
    assert "--force" in again.err


def test_a_snapshot_is_not_written_of_a_snapshot(memplan, snapshot, tmp_path):
    """It is one already."""
    done = memplan("replay", snapshot, "--snapshot", tmp_path / "other.pickle")

    assert (2, "") == (done.code, done.out)
    assert "is written of one tape" in done.err


def test_a_file_larger_than_this_machines_memory_is_refused(memplan, snapshot, monkeypatch):
    """Before it fills the memory, in one line that says how much there is."""
    left = iter([1 << 30, 1 << 27])  # before it is read, and after its first part
    monkeypatch.setattr("memplan.trace.snapshot.available_host_bytes", lambda: next(left))
    done = memplan("replay", snapshot)

    assert (1, "") == (done.code, done.out)
    assert "takes more host memory than the" in done.err
    assert 1 == done.err.count("\n")
