"""The pages about a command that ran on a phantom card."""

import pytest
from matplotlib.figure import Figure

from memplan.present.script import remedies
from memplan.report.script_pages import draw_timeline, headline, script_figures
from memplan.script_answer import (
    HostRead,
    OutOfMemory,
    ScriptAnswer,
    ScriptError,
    ScriptTimeline,
    Trial,
)

_GIB = 1 << 30


def answer(**changes):
    values = {
        "command": "python train.py --batch 4",
        "gpu": "rtx-3090",
        "title": "NVIDIA GeForce RTX 3090",
        "capacity_bytes": 24 * _GIB,
        "num_devices": 1,
        "versions": {"torch": "2.11.0"},
        "num_steps": 2,
        "stopped": True,
        "num_evaluations": 0,
        "unseen_validation_steps": None,
        "allocated_peak_bytes": 5 * _GIB,
        "reserved_peak_bytes": 6 * _GIB,
        "device_used_peak_bytes": 7 * _GIB,
        "num_alloc_retries": 0,
        "peak_phase": "forward",
        "peak_module": "net.0",
        "categories_at_peak": {"parameter": _GIB, "activation": 4 * _GIB},
        "modules": [
            {"path": "net.0", "bytes": 4 * _GIB, "activation": 4 * _GIB},
            {"path": "", "bytes": _GIB, "parameter": _GIB},
        ],
        "growth": [],
        "timeline": ScriptTimeline(
            categories={"parameter": (_GIB,) * 4, "activation": (0, 4 * _GIB, 0, 2 * _GIB)},
            step_ends=(2,),
        ),
        "out_of_memory": None,
        "error": None,
        "from_host": 3,
        "by_rule": [HostRead(line="train.py:12", answer="2", count=5)],
    }
    return ScriptAnswer(**{**values, **changes})


MEMORY = OutOfMemory(
    message="CUDA out of memory.", requested_bytes=_GIB, file="/x/train.py", line=9,
    module="net.0", phase="forward", step=2, is_caught=False,
)  # fmt: skip
TRIALS = [Trial(batch=31, runs=True, device_used_peak_bytes=1)]


def texts(figure):
    return " ".join(text.get_text() for text in figure.texts)


def test_bands_stack_to_allocated_memory():
    """The upper edge of the last band is the sum of all categories."""
    axes = Figure().add_subplot()
    draw_timeline(axes, answer())
    tops = [band.get_paths()[0].get_extents().y1 for band in axes.collections]

    assert [_GIB, 5 * _GIB] == tops


def test_the_end_of_a_step_is_an_upright_line():
    """It stands at the right edge of the step's last point."""
    axes = Figure().add_subplot()
    draw_timeline(axes, answer())

    assert [2.5, 2.5] in [list(line.get_xdata()) for line in axes.lines]


def test_modules_are_bars_that_add_up():
    """Each module's bar is as long as what it made."""
    figure = script_figures(answer())[2]
    (axes,) = figure.axes
    ends = {round(bar.get_x() + bar.get_width()) for bar in axes.patches}

    assert {4 * _GIB, _GIB} <= ends


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Runs on NVIDIA GeForce RTX 3090: 7.00 GiB at its peak"),
        ({"out_of_memory": MEMORY}, "NVIDIA GeForce RTX 3090: step 3, train.py:9"),
        ({"error": ScriptError(kind="KeyError", message="x", file="a.py", line=1)}, "KeyError"),
        (
            {"largest_batch": 31, "batch_option": "--batch", "trials": TRIALS},
            "Largest --batch on NVIDIA GeForce RTX 3090: 31",
        ),
    ],
)  # fmt: skip
def test_the_first_words_are_the_answer(changes, words):
    """Whether it runs, where it ran out, or the largest batch."""
    assert words in headline(answer(**changes))


def test_the_facts_name_lines_and_where_memory_ran_out():
    """Reads by rule are a table; the error has file, line and module."""
    said = texts(script_figures(answer(out_of_memory=MEMORY))[-1])

    assert "train.py:12" in said
    assert "Out of memory in step 3 at train.py:9, forward of net.0" in said


def test_an_answer_survives_its_file():
    """What is saved is read again, equal in every field."""
    saved = answer(out_of_memory=MEMORY, trials=TRIALS)

    assert saved == ScriptAnswer.from_json(saved.to_json())


def test_page_one_says_where_it_ran_out_and_what_to_change():
    """The script's line, the remedy in the terminal's words, and growth step by step."""
    growth = [
        {"allocated_peak_bytes": i * _GIB, "reserved_peak_bytes": (i + 1) * _GIB} for i in (1, 2)
    ]
    memory = answer(out_of_memory=MEMORY, growth=growth)
    figure = script_figures(memory)[0]
    said = " ".join(texts(figure).split())
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}

    assert "step 3, train.py:9, forward of net.0" in said
    assert all(" ".join(text.split()) in said for text in remedies(memory))
    assert "still growing at the last step" in said
    assert [2 * _GIB, 3 * _GIB] == lines["reserved"]


def test_a_script_that_used_nothing_has_a_page_too():
    """A failure before any memory is a page of its reason, not an error."""
    error = ScriptError(kind="KeyError", message="x", file="a.py", line=1)
    bare = answer(error=error, modules=[], allocated_peak_bytes=0,
                  timeline=ScriptTimeline(categories={}, step_ends=()))  # fmt: skip

    assert "Fails at a.py:1: KeyError" in texts(script_figures(bare)[0])
