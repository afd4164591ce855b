"""A run's report: its page one, memory like against like, curves told apart, tables, pictures."""

import json

import pypdf
import pytest
import report_samples
from matplotlib.figure import Figure
from PIL import Image

from memplan.present import run as present
from memplan.present.run_record import read_run
from memplan.report.pages import write_report
from memplan.report.run import draw_curves, glance_figure, joint_curves
from memplan.report.run_memory import draw_live_memory
from memplan.report.run_scores import draw_confusion, scores_figure

MIB = 1 << 20
STARTED = {
    "workload": "yolov9-t", "device": "cpu", "precision": "fp32", "micro_batch_size": 4,
    "accumulation_steps": 1, "devices": 1, "effective_batch_size": 4, "nominal_batch_size": 64,
    "training_images": 400, "validation_images": 60, "host_resident_bytes": 736 * MIB,
}  # fmt: skip


def _axes():
    return Figure(figsize=(8, 4)).add_axes((0.1, 0.1, 0.8, 0.8))


def _texts(figure):
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


def _write_events(folder, *events):
    rows = [{"time": "2026-01-02T03:04:05.678+00:00", "event": n, **facts} for n, facts in events]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_host_memory(folder, *, predicted=142 * MIB):
    lines = ["epoch,step,phase,predicted_allocated_bytes,live_allocated_bytes,host_resident_bytes"]
    lines += [f"1,{step},train,{predicted},,{(880 + step) * MIB}" for step in (1, 10, 20)]
    (folder / "memory.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    """A run of twelve epochs that backed off once and left all its tables and a picture."""
    folder = report_samples.write_run_folder(tmp_path / "exp")
    back = {"epoch": 2, "phase": "training", "micro_batch_size": 2, "accumulation": 2}
    ran_out = {"epoch": 2, "phase": "training", "message": "CUDA out of memory."}
    events = [("started", STARTED), ("out_of_memory", ran_out), ("backed_off", back)]
    _write_events(folder, *events)
    (folder / "args.yaml").write_text(
        "workload: yolov9-t\nimage_size: 64\nepochs: 12\nlean: false\n"
    )
    (folder / "per_class.csv").write_text(
        "class,images,instances,precision,recall,mAP50,mAP50-95\n"
        "all,60,300,0.7,0.6,0.65,0.4\ncat,40,200,0.8,0.7,0.75,0.5\ndog,20,100,0.6,0.5,0.55,0.3\n"
    )
    plots = folder / "plots"
    plots.mkdir()
    (plots / "confusion_matrix.csv").write_text(
        '"predicted (confidence >= 0.25, IoU >= 0.45)",true cat,true dog,true background\n'
        "cat,150,10,9\ndog,5,70,8\nbackground,45,20,0\n"
    )
    (plots / "f1.csv").write_text("confidence,all,cat,dog\n0.0,0.2,0.3,0.1\n0.5,0.6,0.7,0.5\n")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(plots / "validation_batch.png")
    return folder


def test_page_one_is_the_run(folder):
    """Title, three numbers and events of page one say what the run reached and took."""
    texts = " | ".join(_texts(glance_figure(read_run(folder))))

    assert "Run exp: best mAP@0.5:0.95 0.489, epoch 11 of 12" in texts
    assert "4 images a step, all at once; the recipe was made for 64 a step" in texts
    assert "peak, device-used (measured)" in texts
    assert "12.1 GiB predicted" in texts
    assert "out of memory 1, backed off 1" in texts
    assert "epoch 2, out of memory: CUDA out of memory." in texts


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"accumulation_steps": 16, "effective_batch_size": 64},
            "64 images a step, 16 times 4 at once",
        ),
        (
            {"devices": 2, "effective_batch_size": 8, "nominal_batch_size": 8},
            "8 images a step, 4 at once on each of 2 devices",
        ),
    ],
)
def test_batch_is_told_in_plain_words(tmp_path, facts, expected):
    """No formula: how many images a step, and how many at once."""
    _write_events(tmp_path, ("started", {**STARTED, **facts}))

    assert expected == present.batch_line(read_run(tmp_path))


def test_host_memory_compares_above_the_start(tmp_path):
    """Of 900 MiB that a process holds, the 736 it began with are in no prediction."""
    _write_events(tmp_path, ("started", STARTED))
    _write_host_memory(tmp_path)
    (one,) = present.agreements(read_run(tmp_path))

    assert 164 * MIB == one.measured_bytes
    assert 142 * MIB == one.predicted_bytes
    assert "736 MiB before its first step" in one.note


def test_host_memory_without_a_start_is_compared_with_nothing(tmp_path):
    """A run that did not record what it began with never shows 900 MiB against 142."""
    _write_host_memory(tmp_path)
    run = read_run(tmp_path)
    axes = _axes()
    draw_live_memory(axes, run)

    assert [None] == [one.predicted_bytes for one in present.agreements(run)]
    assert ["host-resident, measured"] == [line.get_label() for line in axes.lines]


def test_predicted_host_memory_stands_on_what_was_held(tmp_path):
    """The predicted line is drawn on top of the ground that the process held."""
    _write_events(tmp_path, ("started", STARTED))
    _write_host_memory(tmp_path)
    axes = _axes()
    draw_live_memory(axes, read_run(tmp_path))
    lines = {line.get_label(): line for line in axes.lines}

    assert {(736 + 142) * MIB} == set(lines["that + predicted tensors"].get_ydata())
    assert any("held before the first step" in text for text in _texts(axes))


def test_equal_columns_are_one_curve_with_both_names():
    """Three learning rates of which two are the same draw two lines, each with all its names."""
    curves = {"x/lr0": (0.1, 0.2), "x/lr1": (0.3, 0.2), "x/lr2": (0.3, 0.2)}

    assert [["lr0"], ["lr1", "lr2"]] == [names for names, _ in joint_curves((1, 2), curves)]


def test_curves_differ_in_shape_before_colour():
    """No two of the first four curves share a marker or a dash."""
    axes = _axes()
    draw_curves(axes, (1, 2), {f"c{i}": (i, i + 0.1) for i in range(4)}, "Loss")

    assert 4 == len({line.get_marker() for line in axes.lines})
    assert 4 == len({(line.get_linestyle(), line._dash_pattern[1] and tuple(line._dash_pattern[1]))
                     for line in axes.lines})  # fmt: skip


def test_guards_events_are_marked_over_the_steps(folder):
    """A cross stands at the first step of the epoch that ran out of memory."""
    lines = (folder / "memory.csv").read_text().splitlines()
    rows = [f"epoch,{lines[0]}", *(f"{1 + i // 60},{row}" for i, row in enumerate(lines[1:]))]
    (folder / "memory.csv").write_text("\n".join(rows) + "\n")
    axes = _axes()
    draw_live_memory(axes, read_run(folder))
    crosses = [line for line in axes.lines if line.get_marker() == "x"]

    assert [[300]] == [list(line.get_xdata()) for line in crosses]
    assert "out of memory, backed off" in _texts(axes)


def test_confusion_shows_counts_and_shares_of_the_true_class(folder):
    """Cells hold counts; colour is the column's share, and background has none."""
    axes = _axes()
    draw_confusion(axes, read_run(folder).confusion)
    shares = axes.collections[0].get_array().tolist()

    assert [0.75, 0.1, 0.0] == [pytest.approx(share) for share in shares[0]]
    assert {"150", "70", "45"} <= set(_texts(axes))


def test_a_run_without_details_has_no_page_of_scores(tmp_path):
    """What the workload did not leave is left out."""
    assert scores_figure(read_run(report_samples.write_run_folder(tmp_path / "exp"))) is None


def test_damaged_details_are_left_out(folder):
    """A matrix that is not square, a half-written event and a picture that is none cost a page."""
    (folder / "plots" / "confusion_matrix.csv").write_text("a,b\nc,1,2\n")
    (folder / "plots" / "validation_batch.png").write_bytes(b"\x89PNG nothing")
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "fin')
    (folder / "args.yaml").write_text("[")
    run = read_run(folder)

    assert run.confusion is None
    assert 3 == len(run.events)
    assert {} == run.settings
    write_report(folder / "r.pdf", run_folder=folder, command="memplan report exp")


def test_report_of_a_run_holds_its_tables(folder):
    """Classes, data, settings and files are tables, and the run's pages come before its plan's."""
    plan = report_samples.sample_plan()
    path = write_report(
        folder / "r.pdf", plans=[plan], run_folder=folder, command="memplan report exp"
    )
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    text = "\n".join(pages)

    assert "Run exp: best" in pages[0]
    assert next(i for i, page in enumerate(pages) if "Accuracy by class" in page) < next(
        i for i, page in enumerate(pages) if "The plan and its alternatives" in page
    )
    assert "Training memory" not in text
    for expected in ("cat 40 200 0.800", "Validation objects", "300, 5.00 an image", "SHA-256"):
        assert expected in " ".join(text.split()), expected
    assert path.stat().st_size < 2_000_000
