"""The PDF: pages in order, searchable text, embedded fonts, the same bytes every time."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pypdf
import pytest
import report_samples

from memplan.errors import BadInputError
from memplan.present.plan import plan_sections
from memplan.present.probe import probe_sections
from memplan.report import write_report
from memplan.report.answers_page import answers_figures

COMMAND = "memplan probe --cfg yolov9-s --gpu rtx-3090 --report out.pdf"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A full report of two cards, a plan and a run, as one text a page."""
    folder = tmp_path_factory.mktemp("report")
    path = write_report(
        folder / "new" / "all.pdf",
        probes=[report_samples.sample_probe(), report_samples.sample_probe(report_samples.A100)],
        plans=[report_samples.sample_plan()],
        run_folder=report_samples.write_run_folder(folder / "exp"),
        command=COMMAND,
    )
    return [page.extract_text() for page in pypdf.PdfReader(path).pages]


def test_pages_come_in_order(pages):
    """The run first, then the answers and each figure, then how the numbers came about."""
    expected = [
        "Run exp: best mAP@0.5:0.95",
        "Run exp: how training went",
        "Run exp: memory, measured against predicted",
        "Run exp: facts",
        "Training memory: yolov9-s at 640 px",
        "Memory over one life: yolov9-s at 640 px, micro-batch 16, rtx-3090",
        "Memory over one life: yolov9-s at 640 px, micro-batch 16, a100-80gb",
        "Peak memory versus micro-batch: yolov9-s at 640 px",
        "Where activations live: yolov9-s at 640 px, micro-batch 16",
        "What is kept along the network: yolov9-s at 640 px, micro-batch 16",
        "What the peak is made of: yolov9-s at 640 px, micro-batch 16",
        "What would change it: yolov9-s at 640 px, micro-batch 16",
        "Recommended settings: yolov9-s at 640 px",
        "How far to trust it: predictions for cards like rtx-3090",
        "How far to trust it: predictions for cards like a100-80gb",
        "The plan and its alternatives: yolov9-s at 640 px, rtx-3090 (23.6 GiB)",
        "Plan: yolov9-s at 640 px, rtx-3090 (23.6 GiB)",
        "Probe: yolov9-s at 640 px, rtx-3090 (23.6 GiB)",
        "Probe: yolov9-s at 640 px, a100-80gb",
        "How these numbers came about",
    ]

    assert len(expected) == len(pages)
    assert [] == [title for title, page in zip(expected, pages, strict=True) if title not in page]


def test_page_one_answers(pages):
    """The first page of answers says what fits, what to run, what is left, with the origin."""
    first = " ".join(pages[4].split())

    assert "images at once at most (predicted)" in first
    assert {"31", "109"} <= set(first.split())
    assert "images a step, 2 times 32 at once" in first
    assert "headroom" in first


def test_page_one_says_what_the_terminal_says():
    """One answer: the title holds it, and every sentence is the presenter's, word for word."""
    probe, plan = report_samples.sample_probe(), report_samples.sample_plan()
    sections = {"probe": probe_sections(probe), "plan": plan_sections(plan)}
    for one, title in (
        (answers_figures([probe], []), "up to 31 images at once"),
        (answers_figures([], [plan]), "64 images a step, 2 times 32 at once"),
    ):
        texts = [text.get_text() for figure in one for text in figure.texts]
        said = " ".join(" ".join(texts).split())
        kind = "plan" if "Plan for" in said else "probe"
        first = next(s for s in sections[kind] if s.title in ("The plan", "Recommended"))

        assert title in texts[0]
        assert " ".join(first.sentences) in said


def test_last_page_states_the_facts(pages):
    """Command, source of the card's figures, unknown operators, notes, versions."""
    last = pages[-1].replace("\n", " ")

    assert COMMAND in last
    assert "context 370 MiB" in last
    assert "Source: catalogue" in last
    assert "torchvision::deform_conv2d (4)" in last
    assert "Validation runs at twice the micro-batch" in last
    assert "torch 2.11.0" in last


def test_every_page_is_numbered(pages):
    """Pages say which of how many they are."""
    for number, page in enumerate(pages, start=1):
        assert f"{number} of {len(pages)}" in page


def test_fonts_are_embedded_truetype_and_dates_fixed(tmp_path):
    """Text is TrueType inside the file, and the file carries no date of its making."""
    path = write_report(tmp_path / "r.pdf", plans=[report_samples.sample_plan()], command=COMMAND)
    reader = pypdf.PdfReader(path)
    fonts = [
        font.get_object()["/DescendantFonts"][0].get_object()
        for page in reader.pages
        for font in page["/Resources"]["/Font"].values()
    ]

    assert fonts
    assert all("/FontFile2" in font["/FontDescriptor"] for font in fonts)
    assert 2000 == reader.metadata.creation_date.year


def test_same_answers_give_the_same_bytes(tmp_path):
    """Two processes with different hash seeds write the same file."""
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import report_samples as s;"
        "from memplan.report import write_report as w;"
        "w(pathlib.Path(sys.argv[2]), probes=[s.sample_probe()], command='c')"
    )
    digests = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.pdf"
        subprocess.run(
            [sys.executable, "-W", "error", "-c", script, str(Path(__file__).parent), str(path)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "MPLCONFIGDIR": str(tmp_path)},
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())

    assert 1 == len(digests)


def test_no_pyplot_figure_is_left_open(pages):
    """Reports never go through pyplot, so no figure lingers in its registry."""
    pyplot = sys.modules.get("matplotlib.pyplot")

    assert pages
    assert pyplot is None or not pyplot.get_fignums()


def test_an_existing_file_is_kept(tmp_path):
    """Without force the file stays as it is and the error names --force."""
    path = tmp_path / "report.pdf"
    path.write_text("mine")

    with pytest.raises(BadInputError, match="--force"):
        write_report(path, plans=[report_samples.sample_plan()], command=COMMAND)
    assert "mine" == path.read_text()


def test_force_overwrites(tmp_path):
    """With force the report replaces the file."""
    path = tmp_path / "report.pdf"
    path.write_text("mine")
    write_report(path, plans=[report_samples.sample_plan()], command=COMMAND, force=True)

    assert path.read_bytes().startswith(b"%PDF")


def test_nothing_to_report_is_refused(tmp_path):
    """A report of nothing names what may be given."""
    with pytest.raises(BadInputError, match="probe, a plan or a run"):
        write_report(tmp_path / "r.pdf", command=COMMAND)


def test_a_missing_run_folder_is_refused(tmp_path):
    """The error names the folder."""
    with pytest.raises(BadInputError, match="nowhere"):
        write_report(tmp_path / "r.pdf", run_folder=tmp_path / "nowhere", command=COMMAND)


def test_odd_names_and_a_bare_run_are_drawn(tmp_path):
    """Dollar signs, other scripts and a run without any table are no reason to fail."""
    folder = tmp_path / "run $x$ \u8bad"
    folder.mkdir()
    path = write_report(tmp_path / "r.pdf", run_folder=folder, command="memplan $\\frac$ _^")
    text = pypdf.PdfReader(path).pages[0].extract_text()

    assert "run $x$ \\u8bad" in text


def test_no_fitting_setting_is_reported(tmp_path):
    """A card too small still gets its pages, with the cross and the words."""
    small = dataclasses.replace(report_samples.RTX_3090, capacity_bytes=1 << 30)
    probe = dataclasses.replace(
        report_samples.sample_probe(small, (1, 2)), largest_batch=0, recommended=None
    )
    path = write_report(tmp_path / "r.pdf", probes=[probe], command=COMMAND)
    texts = [page.extract_text() for page in pypdf.PdfReader(path).pages]

    assert "not even one image fits" in texts[0]
    assert "out of memory: needs" in texts[1]
