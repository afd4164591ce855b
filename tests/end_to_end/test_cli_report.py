"""`memplan report` makes pages of saved answers, and says what it cannot read."""

import pytest
from cli_inside import runner
from pypdf import PdfReader

import memplan as package
from memplan.answers import save_answers


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a saved probe and plan."""
    path = tmp_path_factory.mktemp("report")
    model = "torchvision:resnet18"
    probe = package.probe(model, gpu="t4", batch=[1, 4], img=64)
    save_answers(path / "probe.json", [probe], force=False)
    plan = package.plan(model, gpu="t4", effective_batch=2, img=64, recompute="none")
    save_answers(path / "plan.json", [plan], force=False)
    return path


def test_pages_hold_probe_and_plan(memplan, folder, tmp_path):
    """The document names the workload, the card and the versions; its path ends the run."""
    path = tmp_path / "pages.pdf"

    finished = memplan("report", folder / "probe.json", folder / "plan.json", "--output", path)

    assert (0, "", f"Wrote {path}\n") == (finished.code, finished.out, finished.err)
    text = "\n".join(page.extract_text() for page in PdfReader(path).pages)
    for words in ("resnet18", "t4", "predicted", "torch"):
        assert words in text


def test_report_is_only_overwritten_with_force(memplan, folder, tmp_path):
    """A document that exists is kept unless --force is given."""
    path = tmp_path / "pages.pdf"
    path.write_text("mine")

    refused = memplan("report", folder / "probe.json", "--output", path)
    kept = path.read_text()
    forced = memplan("report", folder / "probe.json", "--output", path, "--force")

    assert (1, "mine", 0) == (refused.code, kept, forced.code)
    assert b"%PDF" == path.read_bytes()[:4]


def test_default_path_is_in_the_working_folder(memplan, folder, tmp_path, monkeypatch):
    """Without --output the pages go to report.pdf."""
    monkeypatch.chdir(tmp_path)

    assert "Wrote report.pdf\n" == memplan("report", folder / "plan.json").err
    assert (tmp_path / "report.pdf").is_file()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"[]", "nothing to report"),
        (b"[1]", "schema None"),
        (b"{", "it is no JSON"),
        (b"\xff\xfe\x00", "it is no JSON"),
        (b'{"schema": "memplan.probe/9"}', "memplan.probe/1"),
        (b'{"schema": "memplan.probe/1"}', "incomplete"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(memplan, tmp_path, content, words):
    """What is no saved answer is exit code 1, with the reason, and leaves no document."""
    path = tmp_path / "answer.json"
    if content is not None:
        path.write_bytes(content)

    finished = memplan("report", path, "--output", tmp_path / "pages.pdf")

    assert (1, "") == (finished.code, finished.out)
    assert words in finished.err
    assert 1 == len(finished.err.splitlines())
    assert not (tmp_path / "pages.pdf").exists()


def test_two_run_folders_are_wrong_usage(memplan, tmp_path):
    """One run has one report."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    finished = memplan(
        "report", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "pages.pdf"
    )

    assert 2 == finished.code
    assert "second run folder" in finished.err


def test_no_file_is_wrong_usage(memplan):
    """At least one file must be given."""
    assert 2 == memplan("report").code


def test_diff_says_what_grew_and_draws_it(memplan, folder, tmp_path):
    """Two saved probes are compared on stdout and in pages; one file is not enough."""
    path = tmp_path / "diff.pdf"
    probe = folder / "probe.json"
    finished = memplan("report", probe, probe, "--diff", "--output", path)
    alone = memplan("report", probe, "--diff", "--output", tmp_path / "alone.pdf")

    assert 0 == finished.code
    assert "As much device-used" in finished.out
    assert path.read_bytes().startswith(b"%PDF")
    assert 2 == alone.code
    assert "--diff compares 2 files, not 1" in alone.err


def test_a_name_in_html_makes_one_page(memplan, folder, tmp_path):
    """Of a probe and a plan, and of two probes compared; the end of the name says which kind."""
    page, diff = tmp_path / "page.html", tmp_path / "diff.html"

    finished = memplan("report", folder / "probe.json", folder / "plan.json", "--output", page)
    memplan("report", folder / "probe.json", folder / "probe.json", "--diff", "--output", diff)

    assert (0, "", f"Wrote {page}\n") == (finished.code, finished.out, finished.err)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "Probe: torchvision:resnet18" in page.read_text()
    assert "Plan: torchvision:resnet18" in page.read_text()
    assert "nothing changed" in diff.read_text()
