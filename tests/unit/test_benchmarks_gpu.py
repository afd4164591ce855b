"""The GPU battery as far as it goes without a card: its cases, its slices and its comparison."""

import time
from dataclasses import asdict, replace

import pytest

from benchmarks.gpu import battery as batteries
from benchmarks.gpu.alignment import Event, align, measured_events, predicted_events
from benchmarks.gpu.battery import Battery, bundle_up, recordings_in
from benchmarks.gpu.calibrate import calibration_of_recordings
from benchmarks.gpu.cases import KINDS, PEERS, Case, all_cases, matching
from benchmarks.gpu.collect import collect
from benchmarks.gpu.compare import report
from benchmarks.gpu.job import Job
from benchmarks.gpu.lives import compare_life, summary
from benchmarks.gpu.measured import measured
from benchmarks.gpu.predict import PEAKS, PredictedLife, predict
from memplan import tape as tapes
from memplan.device.allocator import CachingAllocator
from memplan.device.catalogue import card
from memplan.errors import BadInputError
from memplan.trace.history import SUFFIX, Recording, load_recording
from memplan.trace.snapshot import Snapshot
from memplan.trace.snapshot_history import History

H200 = card("h200")
TINY = Case(
    workload="torchvision:resnet18", image_size=64, micro_batch_size=1, precision="fp32",
    group="tiny",
)  # fmt: skip
MACHINE = {
    "device": "cuda",
    "date": "2026-11-24",
    "versions": {"torch": "2.11.0", "cudnn": "9.19.0"},
    "card": "h200",
    "device_name": "NVIDIA H200",
    "driver": "580.1",
    "capacity_bytes": 150_000_000_000,
    "in_catalogue": True,
}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Neither this account's calibrations nor the repository's recordings count."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(batteries, "RECORDINGS", tmp_path / "recordings")


def battery(folder, **changes):
    """Return a battery for the CPU that keeps what it says."""
    said = []
    values = {"folder": folder, "card": H200, "device": "cpu", "seconds": 300.0}
    return Battery(**(values | {"say": said.append} | changes)), said


def as_if_recorded(life, *, tamper=None):
    """Return the history that the simulated allocator leaves when it runs a predicted life.

    `tamper(event, size)` may return another size for what a card would have asked.
    """
    settings = life.simulator.settings
    allocator = CachingAllocator(1 << 40, settings, trace=True)
    live = {}
    columns = (life.program.kinds, life.program.blocks, life.sizes)
    for at, (kind, block, size) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        wanted = size if tamper is None else tamper(at, size)
        if kind == tapes.ALLOCATE:
            live[block] = allocator.malloc(wanted)
        elif kind == tapes.FREE:
            allocator.free(live.pop(block))
        elif kind == tapes.SCRATCH:
            allocator.free(allocator.malloc(wanted))
    stats = allocator.stats()
    snapshot = Snapshot(
        torch_version=(2, 11),
        segments=allocator.snapshot(),
        trace=History(allocator.trace),
        settings=settings,
    )
    return snapshot, {
        "allocated_peak_bytes": stats["allocated_bytes.all.peak"],
        "reserved_peak_bytes": stats["reserved_bytes.all.peak"],
    }


@pytest.fixture(scope="module")
def life():
    """The tiny case, predicted."""
    return PredictedLife.of(TINY, H200)


def recording(life, *, outside=500_000_000, seconds=None, tamper=None):
    """Return the tiny case as a card would have recorded it."""
    snapshot, peaks = as_if_recorded(life, tamper=tamper)
    used = peaks["reserved_peak_bytes"] + outside
    measured = {
        **peaks,
        "device_used_peak_bytes": used,
        "outside_bytes": {"initialized": outside, "step": outside},
        "seconds": seconds or {},
        "out_of_memory": "",
        "overflowed": False,
    }
    facts = {
        "case": asdict(TINY),
        "group": TINY.group,
        "machine": MACHINE,
        "prediction": predict(TINY, H200),
        "measured": measured,
    }
    return Recording(facts=facts, snapshot=snapshot)


def test_the_list_covers_what_was_asked():
    """Networks, settings, smaller cards, libraries and other finders, each case once."""
    cases = all_cases()
    names = [case.name for case in cases]

    assert len(set(names)) == len(names)
    assert set(KINDS) == {case.kind for case in cases}
    assert 12 == sum(case.kind == "budget" for case in cases)
    assert set(PEERS) == {case.peer for case in cases if case.peer}
    lives = [case for case in cases if case.kind == "life"]
    workloads = {case.workload for case in lives}
    yolo = {"yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e", "gelan-c"}
    assert yolo <= workloads
    assert 6 == sum(name.startswith("torchvision:") for name in workloads)
    assert {"amp-fp16", "amp-bf16", "fp32"} == {case.precision for case in lives}
    assert {"contiguous", "channels-last"} == {case.memory_format for case in lives}
    assert {True} <= {case.cudnn_benchmark for case in lives}
    assert {True} <= {case.deterministic for case in lives}
    assert any(case.allocator for case in lives)
    assert any(case.recompute == "all" for case in lives)
    assert {"SGD", "AdamW"} <= {case.optimizer for case in lives}


def test_names_are_fit_for_files_and_most_worth_comes_first():
    """Names travel back from the card; the raw truth does not wait for the grid."""
    cases = all_cases()

    assert all(set(case.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                     "0123456789._-") for case in cases)  # fmt: skip
    groups = list(dict.fromkeys(case.group for case in cases))
    assert ["smoke", "one-by-one", "context", "raw-truth", "libraries", "article"] == groups[:6]
    assert "grid" == groups[-1]


def test_every_case_is_a_question_that_can_be_asked():
    """Settings are checked when a question is made, so that no slice stumbles over one."""
    for case in all_cases():
        question = case.question(H200)
        assert case.precision == question.step_spec.precision
        assert case.image_size == question.made.image_size


def test_a_checkout_adds_its_own_step_and_its_path_stays_here(tmp_path):
    """The official step runs where a checkout is given; recordings do not name its folder."""
    new = [case for case in all_cases(tmp_path) if "official" in case.name]

    assert {"life", "peer"} == {case.kind for case in new}
    assert str(tmp_path) not in str([case.to_json() for case in new])


def test_patterns_choose_by_name_and_group():
    """Parts of names, shell patterns and groups."""
    cases = all_cases()

    assert 12 == len(matching(cases, "small-cards"))
    assert {"context"} == {case.kind for case in matching(cases, "context*")}
    assert cases == matching(cases, None)
    assert [] == matching(cases, "no such")


def test_a_job_travels_as_text(tmp_path):
    """The child gets the very case and card."""
    job = Job(case=TINY, card=H200, device="cpu", folder=tmp_path)

    assert job == Job.from_text(job.to_text())


@pytest.mark.slow
def test_a_case_runs_is_kept_and_is_not_run_again(tmp_path):
    """On a CPU: predicted, measured, written, bundled; a second slice has nothing to do."""
    bundle = tmp_path / "back" / "battery.zip"
    runner, said = battery(tmp_path / "out", bundle=bundle)

    first = runner.run([TINY])
    (found,) = recordings_in(tmp_path / "out").values()

    assert ([TINY.name], [], [], []) == (first.done, first.kept, first.failed, first.left)
    assert 1 == len(said)
    assert TINY == Case(**found.facts["case"])
    assert found.facts["prediction"]["allocated_peak_bytes"] > 0
    assert found.facts["measured"]["allocated_peak_bytes"] is None
    assert found.facts["measured"]["seconds"]["step/all"]
    assert found.snapshot is None
    assert str(tmp_path) not in str(found.facts)

    again = battery(tmp_path / "out")[0].run([TINY])
    assert ([], [TINY.name]) == (again.done, again.kept)
    new, left = collect(bundle, tmp_path / "kept")
    assert ([], 1) == (new, len(left))
    page = report({TINY.name: found})
    assert "no memory of a card was measured" in page
    assert "No life of these has been measured on a card." in page


@pytest.mark.slow
def test_a_case_that_dies_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    """A process that the system kills loses its own case only."""
    (tmp_path / "dying.py").write_text(
        "import os, signal\n"
        "from trace_toy import Counted\n"
        "class Dying(Counted):\n"
        "    def build_model(self):\n"
        "        if os.environ.get('CUDA_VISIBLE_DEVICES') != '':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().build_model()\n"
        "def make(image_size):\n"
        "    made = Dying()\n"
        "    made.image_size = image_size\n"
        "    return made\n"
    )
    here = __file__.rpartition("/")[0]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{here}")
    dying = replace(TINY, workload="dying:make", image_size=8)
    unknown = replace(TINY, workload="torchvision:nothing")

    outcome = battery(tmp_path / "out")[0].run([dying, unknown])

    assert [dying.name, unknown.name] == outcome.failed
    found = recordings_in(tmp_path / "out")
    one, other = (found[f"cpu_{case.name}"].facts for case in (dying, unknown))
    assert "was killed by signal 9" == one["failure"]
    assert one["prediction"]["allocated_peak_bytes"] > 0
    assert "Unknown" in other["failure"]
    assert "Cases that failed" in report(found)


@pytest.mark.parametrize("kind", ["context", "convolutions", "batch_norm"])
def test_library_cases_run_on_a_cpu_and_claim_nothing(tmp_path, kind):
    """The same operators run; what only a card knows is None or empty."""
    case = replace(TINY, kind=kind)
    job = Job(case=case, card=H200, device="cpu", folder=tmp_path)
    prediction = predict(case, H200)

    found, snapshot = measured(job, prediction)
    facts = {
        "case": asdict(case),
        "group": "",
        "machine": {"device": "cpu", "date": "2026-11-24", "versions": {}},
        "prediction": prediction,
        "measured": found,
    }

    assert snapshot is None
    assert not found["outside_bytes"]
    if kind == "convolutions":
        assert len(prediction["workspace_bytes"]) == len(found["rows"]) > 10
        assert {None} == {row["heard"] for row in found["rows"]}
        assert "0 of 0 convolutions as predicted, 0 of 0 with windows" in report(
            {"x": Recording(facts=facts)}
        )
    if kind == "batch_norm":
        assert {None} == {row["reserve_bytes"] for row in found["rows"]}


@pytest.mark.parametrize("peer", PEERS)
def test_a_finder_that_is_not_there_is_recorded_as_such(tmp_path, peer, monkeypatch):
    """No package is needed for the battery to run."""
    monkeypatch.setattr("importlib.import_module", no_module)
    case = replace(TINY, kind="peer", peer=peer, budget_gib=24)
    job = Job(case=case, card=H200, device="cpu", folder=tmp_path)

    found, _ = measured(job, {"allocator_limit_bytes": 10**10, "largest_batch": 4})

    assert found["present"] is False
    assert "not" in found["reason"] or "no checkout" in found["reason"]


def no_module(name):
    """Stand for an environment without any of the finders' packages."""
    raise ImportError(f"No module named {name!r}: it is not installed")


def test_no_case_begins_when_the_slice_is_nearly_over(tmp_path):
    """What has no room is left, and said to be."""
    runner, said = battery(tmp_path / "out", seconds=5.0)

    outcome = runner.run([TINY, replace(TINY, micro_batch_size=2)])

    assert 2 == len(outcome.left)
    assert [] == said
    assert [] == list((tmp_path / "out").iterdir())


def test_a_case_cut_off_by_the_end_is_left_and_not_failed(tmp_path, monkeypatch):
    """It runs again in the next slice."""
    monkeypatch.setattr(batteries, "_LEAST_SECONDS", 0.0)
    start = time.monotonic()

    outcome = battery(tmp_path / "out", seconds=0.5)[0].run([TINY])

    assert ([TINY.name], []) == (outcome.left, outcome.failed)
    assert time.monotonic() - start < 20
    assert {} == recordings_in(tmp_path / "out")


def test_committed_recordings_count_as_done(tmp_path):
    """A fresh machine goes on where the last one stopped, with the repository alone."""
    kept = tmp_path / "recordings"
    kept.mkdir()
    Recording(facts={}).save(kept / f"cpu_{TINY.name}{SUFFIX}")

    assert [TINY.name] == battery(tmp_path / "out")[0].run([TINY]).kept
    runner, _ = battery(tmp_path / "out", seconds=1.0, again=(TINY.name,))
    assert [TINY.name] == runner.run([TINY]).left


def test_a_bundle_of_a_card_is_collected(tmp_path, life):
    """An archive's recordings land in the repository, byte for byte."""
    out = tmp_path / "out"
    out.mkdir()
    name = f"h200_{TINY.name}{SUFFIX}"
    recording(life).save(out / name)
    bundle_up(out, tmp_path / "battery.zip")

    new, left = collect(tmp_path / "battery.zip", tmp_path / "kept")

    assert ([name], []) == ([path.name for path in new], left)
    assert (out / name).read_bytes() == new[0].read_bytes()
    with pytest.raises(BadInputError, match="neither a folder nor an archive"):
        collect(out / name, tmp_path / "kept")


def test_what_happens_as_predicted_aligns_event_by_event(life, tmp_path):
    """A history that the predicted life itself made has no difference, of any level."""
    made = recording(life, outside=H200.context_bytes)
    made.save(tmp_path / f"x{SUFFIX}")
    read = load_recording(tmp_path / f"x{SUFFIX}")
    found = compare_life("x", read, H200)

    assert [] == found.alignment.differences
    assert 1.0 == found.alignment.alike_fraction
    assert dict.fromkeys(PEAKS, 0.0) == {peak: found.error(peak) for peak in PEAKS}
    assert found.replay.is_exact
    assert found.before == found.now
    assert "1 of 1 histories replay through our allocator exactly." == summary([found])[-1]


def test_a_differing_request_is_found_with_its_operator(life):
    """One size that a card asked otherwise shows once, at the operator that asked."""
    sizes = life.sizes
    at = next(i for i, size in enumerate(sizes.tolist())
              if size > 10**6 and life.program.kinds[i] == tapes.ALLOCATE)  # fmt: skip
    made = recording(life, tamper=lambda event, size: size + 7_000_000 if event == at else size)
    found = compare_life("x", made, H200)

    first = found.alignment.grouped()[0][0]
    assert (int(sizes[at]),) == first.predicted
    assert (int(sizes[at]) + 7_000_000,) == first.measured
    rows = life.tape.events.operator[life.program.rows]
    name = life.tape.operator_names[life.tape.operators.name[rows[at]]]
    assert name == first.operator
    assert found.alignment.lost_at is None
    assert found.error("allocated_peak_bytes") <= 0


def test_lists_come_together_again_after_what_only_one_has():
    """Extra, missing and changed events each make one difference, and the rest is alike."""
    mine = [Event(size) for size in (*range(1, 40), 512, *range(40, 80))]
    its = [Event(size) for size in (*range(1, 20), 999, 998, *range(20, 60), 7777, *range(61, 80))]
    found = align(mine, its)

    assert [((), (999, 998)), ((512,), ()), ((60,), (7777,))] == [
        (one.predicted, one.measured) for one in found.differences
    ]
    assert 78 == found.num_alike
    assert found.lost_at is None


def test_lists_that_never_meet_are_said_to_be_lost():
    """The beginning of the rest is told, and where it was."""
    found = align([Event(1), *[Event(2)] * 900], [Event(1), *[Event(3)] * 900])

    assert (1, 1) == (found.lost_at, found.num_alike)
    assert 1 == len(found.differences)


def test_frees_between_two_allocations_have_no_order(life):
    """Histories whose frees are exchanged are alike."""
    events = predicted_events(life)
    snapshot, _ = as_if_recorded(life)

    assert events
    assert [e.size for e in events] == [e.size for e in measured_events(snapshot.trace)]


def test_a_page_counts_underestimates_and_verdicts(life):
    """An outside of the allocator that nobody predicted is an under-estimate of device-used."""
    small = replace(TINY, kind="budget", budget_gib=12, group="small-cards")
    facts = {
        "case": asdict(small),
        "group": small.group,
        "machine": MACHINE,
        "prediction": {"largest_batch": 5, "versions": {}},
        "measured": {"runs": [{"micro_batch_size": 5, "ran": True},
                              {"micro_batch_size": 6, "ran": True}]},
    }  # fmt: skip
    page = report(
        {TINY.name: recording(life, outside=2_000_000_000), small.name: Recording(facts=facts)}
    )

    assert "# Predicted against measured on NVIDIA H200" in page
    assert "driver 580.1, torch 2.11.0" in page
    assert "allocated_peak_bytes: median error 0.00%, worst 0.00%" in page
    line = next(x for x in page.splitlines() if x.startswith("- device_used_peak_bytes"))
    assert "in 1 of 1." in line
    assert "too low" in page
    assert "0 of 1 verdicts right." in page


def test_a_card_is_calibrated_from_its_recordings(life):
    """Context and rates come from the lives; a recording of no card is no calibration."""
    seconds = {name: [2 * value] * 3 for name, value in life.seconds().items()}
    found = calibration_of_recordings({"x": recording(life, seconds=seconds)}, None)

    assert ("h200", "NVIDIA H200", "580.1") == (found.card, found.device_name, found.driver)
    assert 500_000_000 == found.context_bytes
    assert {"fp32"} == set(found.arithmetic_fraction)
    # Every operator of the tiny network is as short as its launch.
    assert pytest.approx(1e-5, rel=0.05) == found.launch_seconds
    assert found.median_error_fraction < 0.02
    with pytest.raises(BadInputError, match="Run the battery on the card first"):
        calibration_of_recordings({}, None)
    with pytest.raises(BadInputError, match="Recordings are of h200"):
        calibration_of_recordings({"x": recording(life)}, "t4")
