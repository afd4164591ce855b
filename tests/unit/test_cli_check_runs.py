"""`memplan check` of files that `memplan run` saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from test_report_script_pages import answer as sample

import memplan
from memplan.cli.check import command
from memplan.errors import UsageError
from memplan.script_answer import ScriptError

DOCS = Path(__file__).parents[2] / "docs" / "check.md"


@pytest.fixture
def check(tmp_path):
    """Return a function that saves a run and a baseline, and checks one against the other."""

    def checked(now, *options, before=None):
        path, base = tmp_path / "now.json", tmp_path / "base.json"
        path.write_text(json.dumps(now.to_json()))
        base.write_text(json.dumps((before or now).to_json()))
        options = [str(base) if one == "BASE" else str(one) for one in options]
        return CliRunner().invoke(command, [str(path), *options])

    return checked


def test_a_run_meets_its_very_peak_and_no_less(check):
    """The budget is compared with device-used, to the byte."""
    run = sample()
    peak = run.device_used_peak_bytes

    assert 0 == check(run, "--budget", peak).exit_code
    failed = check(run, "--budget", peak - 1)
    assert failed.exit_code
    assert "device-used (phantom), over" in failed.output


def test_python_checks_answers_that_were_not_saved():
    """The function takes answers as they are, and sizes as numbers or text."""
    run = sample()
    peak = run.device_used_peak_bytes

    assert [False] == [one.has_failed for one in memplan.check(run, budget=peak)]
    (failed,) = memplan.check([run], budget=f"{peak - 1}B", baseline=run)
    assert failed.has_failed
    assert run.reserved_peak_bytes == failed.before_bytes
    with pytest.raises(UsageError, match="Nothing to check against"):
        memplan.check(run)


def test_a_run_that_grew_names_its_modules(check):
    """The module whose bytes at the peak grew is named, the others are not."""
    before = sample(reserved_peak_bytes=1 << 30, modules=[{"path": "a", "bytes": 5 << 20}])
    modules = [{"path": "a", "bytes": 5 << 20}, {"path": "b", "bytes": 7 << 20}]
    now = sample(reserved_peak_bytes=2 << 30, modules=modules)

    assert 0 == check(now, "--baseline", "BASE").exit_code
    failed = check(now, "--baseline", "BASE", before=before)

    assert failed.exit_code
    assert "+100.0% against 1.0% allowed" in failed.output
    assert ["b"] == [line.split()[0] for line in failed.output.splitlines()[2:3]]


def test_a_run_of_another_command_is_no_baseline(check):
    """Runs are told apart by command, card and number of cards."""
    failed = check(sample(), "--baseline", "BASE", before=sample(command="python other.py"))

    assert failed.exit_code
    assert "has no run of" in str(failed.exception)


def test_the_workflow_of_the_docs_is_one_whose_commands_run(tmp_path):
    """The page's file is YAML, and its last step checks files as they are saved."""
    workflow = yaml.safe_load(DOCS.read_text().split("```yaml\n")[1].split("```")[0])
    lines = [step["run"] for step in workflow["jobs"]["memory"]["steps"] if "run" in step]
    gate = lines[-1]
    assert "memplan check run.json" in gate
    for name in ("run.json", "memory-baseline.json"):
        (tmp_path / name).write_text(json.dumps(sample().to_json()))

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = ["bash", "-ec", gate]
    done = subprocess.run(
        shell,
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (0, "run.json: ok.\n", "") == (done.returncode, done.stdout, done.stderr)
    assert "### Memory of `run.json`: ok" in (tmp_path / "summary.md").read_text()


GROWN = [{"path": "net|a", "bytes": 7 << 20}, {"path": "net.b", "bytes": 3 << 20}]


def test_annotations_are_lines_github_reads(check):
    """One `::error` with file and title, percent signs and colons escaped, modules named."""
    before = sample(reserved_peak_bytes=1 << 30, modules=[])
    now = sample(reserved_peak_bytes=2 << 30, modules=GROWN)

    failed = check(now, "--baseline", "BASE", "--annotations", before=before)

    lines = [line for line in failed.output.splitlines() if line.startswith("::")]
    assert 1 == len(lines)
    assert lines[0].startswith("::error file=")
    assert "now.json,title=memplan check::" in lines[0]
    assert "+100.0%25 against 1.0%25 allowed." in lines[0]
    assert lines[0].endswith("Modules that grew: net|a 7.00 MiB, net.b 3.00 MiB.")
    assert "::" not in check(now, "--baseline", "BASE", before=before).output


def test_the_summary_is_markdown_that_is_appended(check, tmp_path):
    """A table row a run and a table of modules; a second check comes below the first."""
    path = tmp_path / "summary.md"
    before = sample(reserved_peak_bytes=1 << 30, modules=[])
    now = sample(reserved_peak_bytes=2 << 30, modules=GROWN)

    assert check(now, "--baseline", "BASE", "--summary", path, before=before).exit_code
    first = path.read_text()
    assert 0 == check(before, "--budget", "100GiB", "--summary", path).exit_code

    rows = [line for line in first.splitlines() if line.startswith("|")]
    assert {8} == {line.count("|") for line in rows[:3]}
    assert rows[2].endswith("| 2.00 GiB | 1.00 GiB | +100.0% | failed |")
    assert ["| `net\\|a` | 7.00 MiB |", "| `net.b` | 3.00 MiB |"] == rows[-2:]
    assert "now.json`: failed" in first
    assert path.read_text().startswith(first)
    assert path.read_text().rstrip().endswith("| ok |")


@pytest.mark.parametrize("where", ["/dev/full", ".", "a\0b"])
def test_a_summary_that_cannot_be_written_is_told_in_one_line(check, where):
    """A full disk, a folder, a name with a NUL."""
    failed = check(sample(), "--budget", "100GiB", "--summary", where)

    assert failed.exit_code
    assert "\n" not in str(failed.exception)


def test_a_run_that_does_not_get_through_has_a_summary_too(check, tmp_path):
    """Without figures, and failed."""
    path = tmp_path / "summary.md"

    failed = check(
        sample(error=ScriptError(kind="KeyError", message="x", file="train.py", line=3)),
        "--budget",
        "100GiB",
        "--summary",
        path,
    )

    assert failed.exit_code
    assert "does not run." in path.read_text()
