"""A tape's life block by block, and the same as PyTorch's memory snapshot, read back."""

import contextlib
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
from torch.cuda import _memory_viz
from trace_toy import Counted

from memplan.advise.life_blocks import life_blocks
from memplan.cli.replay_pages import tape_blocks
from memplan.device import catalogue
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.life import Life
from memplan.device.replay import Simulator, replayed
from memplan.spec import StepSpec
from memplan.tape import load_tape
from memplan.trace.record import record
from memplan.trace.snapshot import load_content, parsed
from memplan.trace.snapshot_blocks import snapshot_blocks
from memplan.trace.snapshot_replay import check_snapshot, replay_snapshot

CARD = "t4"
OPTIONS = ["", "expandable_segments:True", "max_split_size_mb:64"]


@pytest.fixture(scope="module")
def tape():
    """A step of a small network at batch 4, recorded once."""
    return record(Counted(), 4, StepSpec())


@pytest.fixture(scope="module")
def lives(tape):
    """Its life on a card."""
    card = catalogue.card(CARD)
    found = replayed(tape, card)
    return life_blocks(found.program, tape, found.sizes, Simulator(card), found.peaks), found


def test_blocks_add_up_to_what_is_live_after_each_event(lives):
    """The sum of blocks alive is the sum of categories, event by event."""
    blocks, found = lives

    live = found.program.live_by_category(found.sizes).sum(axis=0)
    assert live.tolist() == blocks.allocated_bytes().tolist()
    assert found.peaks.reserved_peak_bytes == blocks.reserved_bytes.max()
    assert blocks.phases[0] == ("build", "transfer", 0)


def test_blocks_know_shape_dtype_module_operator_and_line(lives):
    """What a layer keeps for backward is told with its source line."""
    blocks, _ = lives
    labels = [blocks.labels[index] for index in blocks.label]

    kept = [one for one in labels if one.band == "activation" and one.module.startswith("0 ")]
    assert any("float16" in one.tensor for one in kept)
    assert any("trace_toy.py:" in one.line for one in labels), {one.line for one in labels}
    assert all(one.operator for one in labels)
    parameters = {one.tensor for one in labels if one.band == "parameter"}
    assert parameters
    assert all(" float32" in tensor or " int64" in tensor for tensor in parameters)


def test_tape_keeps_lines_and_tensors(tape, tmp_path):
    """What a saved tape tells of blocks is what was recorded; one without still loads."""
    tape.save(tmp_path / "a.tape")
    loaded = load_tape(tmp_path / "a.tape")
    older = replace(
        tape,
        operators=replace(tape.operators, line=None),
        lines=(),
        tensors=(),
        block_tensor=None,
    )
    older.save(tmp_path / "b.tape")
    bare = load_tape(tmp_path / "b.tape")

    assert (tape.lines, tape.tensors) == (loaded.lines, loaded.tensors)
    assert np.array_equal(tape.block_tensor, loaded.block_tensor)
    assert np.array_equal(tape.operators.line, loaded.operators.line)
    assert "" == bare.line_of(0)
    assert bare.tensor_of(0) is None


@pytest.mark.parametrize("options", OPTIONS)
def test_export_read_back_has_the_same_peaks(tape, tmp_path, options):
    """Allocated and reserved peaks of the exported file are the replay's, and every address."""
    path, card = tmp_path / "life.pickle", catalogue.card(CARD)
    settings = AllocatorSettings.parse(options)
    tape_blocks(tape, card, settings, Life(), path)
    peaks = replayed(tape, card, settings).peaks

    snapshot = parsed(path, load_content(path))
    check = check_snapshot(snapshot)
    free = replay_snapshot(snapshot, 1 << 50)
    assert (0, "") == (check.num_differing_steps, check.first_difference)
    assert check.is_layout_equal
    assert "simulated" == snapshot.origin
    for one in (check.peaks, free):
        assert peaks.allocated_peak_bytes == one.allocated_peak_bytes
        assert peaks.reserved_peak_bytes == one.reserved_peak_bytes


def test_export_is_read_by_pytorchs_own_viewer(tape, tmp_path):
    """`torch.cuda._memory_viz` sums the segments, writes the trace and draws both plots."""
    path = tmp_path / "life.pickle"
    tape_blocks(tape, catalogue.card(CARD), AllocatorSettings(), Life(), path)
    content = pickle.loads(path.read_bytes())

    with contextlib.redirect_stdout(io.StringIO()):
        summary, trace = _memory_viz.segsum(content), _memory_viz.trace(content)
    assert "segments:" in summary
    assert f"{len(content['device_traces'][0])} entries" in trace
    for plot in (_memory_viz.trace_plot(content), _memory_viz.segment_plot(content)):
        assert "<script" in plot
    frames = _memory_viz.memory(content, format_flamegraph=lambda lines: lines)
    assert "(module):0:" in frames
    assert "(operator):0:" in frames


def test_blocks_of_an_export_are_the_lifes(tape, tmp_path):
    """Categories, modules, operators and lines survive the file; scratch and spans too."""
    path = tmp_path / "life.pickle"
    whole = tape_blocks(tape, catalogue.card(CARD), AllocatorSettings(), Life(), path)
    content = load_content(path)
    back = snapshot_blocks(parsed(path, content), "life")

    def told(one):
        labels = [one.labels[index] for index in one.label]
        rows = [(x.band, x.module, x.line) for x in labels]
        return sorted(zip(rows, one.num_bytes.tolist(), strict=True))

    assert told(whole) == told(back)
    assert [p[:2] for p in whole.phases if p[1] == "backward"] == [
        p[:2] for p in back.phases if p[1] == "backward"
    ]
    assert whole.allocated_bytes().max() == back.allocated_bytes().max()
    assert whole.reserved_bytes.max() == back.reserved_bytes.max()
