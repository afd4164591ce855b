"""The HTML report is one file that says what the terminal says, and takes names as text."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from block_toys import HOSTILE, MIB, many_lives, toy_lives
from report_samples import sample_plan, sample_probe, write_run_folder

from memplan.blocks import without_small
from memplan.errors import BadInputError
from memplan.html import write_html
from memplan.html.charts import Series, chart_html
from memplan.html.report import write_diff_html
from memplan.present.diff import holdings_of
from memplan.present.plan import plan_sections
from memplan.present.probe import probe_sections
from memplan.present.run import run_sections
from memplan.present.run_record import read_run

VOID = {"meta", "link", "br", "img", "rect", "input", "hr"}


class Document(HTMLParser):
    """A page taken apart: tags, attributes, text, and scripts by type."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Check that what ends is what began last."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        """Note text by where it stands."""
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.tags[-1][1].get("type", ""), data))
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        """Everything that is read, white space as single spaces."""
        return " ".join(" ".join(self.texts).split())


def written(tmp_path, **answers):
    """Write a report and return it taken apart."""
    return Document(write_html(tmp_path / "x.html", command="memplan report", **answers))


def said(sections):
    """Return every sentence and cell of sections."""
    for section in sections:
        yield from (*section.sentences, *section.after)
        if section.table is not None:
            yield from section.table.header
            yield from (cell for row in section.table.rows for cell in row)


def test_page_says_what_the_terminal_says(tmp_path):
    """Each sentence and cell of probe, plan and run stands in the page."""
    probe, plan, folder = sample_probe(), sample_plan(), write_run_folder(tmp_path / "run")
    page = written(tmp_path, probes=[probe], plans=[plan], run_folder=folder)

    sections = [*probe_sections(probe), *plan_sections(plan), *run_sections(read_run(folder), plan)]
    missing = [text for text in said(sections) if " ".join(text.split()) not in page.text]
    assert [] == missing
    assert [] == page.open


def test_page_is_one_file_whose_one_script_is_named_by_its_hash(tmp_path):
    """Nothing is loaded from elsewhere, and no other script may run."""
    page = written(tmp_path, probes=[sample_probe()], lives=[toy_lives()])

    loads = [tag for tag, names in page.tags if {"src", "href"} & set(names)]
    (script,) = [text for kind, text in page.scripts if kind != "application/json"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [names["content"] for tag, names in page.tags if "http-equiv" in names]
    assert [] == loads
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_pictures_have_words(tmp_path):
    """Each canvas, bar and chart says in words what it shows, and how it is used."""
    page = written(tmp_path, probes=[sample_probe()])

    pictures = [names for tag, names in page.tags if names.get("role") == "img"]
    ids = {names.get("id") for _, names in page.tags}
    assert 3 == len(pictures)
    assert all(names["aria-label"] for names in pictures)
    assert all(names.get("aria-describedby", "probe-rtx-3090-help") in ids for names in pictures)
    assert ("html", {"lang": "en"}) == page.tags[0]


def test_names_stay_text_wherever_they_stand(tmp_path):
    """A hostile card, workload, module, command and label leave the same tags as harmless ones."""
    probe = sample_probe()

    def named(name):
        labels = tuple(dataclasses.replace(one, module=name) for one in toy_lives().labels)
        tensors = [dataclasses.replace(one, module=name) for one in probe.tensors_at_peak]
        changed = dataclasses.replace(
            probe,
            workload=dataclasses.replace(probe.workload, name=name),
            gpu=dataclasses.replace(probe.gpu, name=name, source=name),
            versions={name: name},
            notes=(name,),
            tensors_at_peak=tuple(tensors),
        )
        return Document(
            write_html(
                tmp_path / "x.html",
                probes=[changed, changed],
                lives=[toy_lives(labels=labels, title=name)],
                command=name,
                force=True,
            )
        )

    harmless, hostile = named("name"), named(HOSTILE)
    assert [tag for tag, _ in harmless.tags] == [tag for tag, _ in hostile.tags]
    data = [text for kind, text in hostile.scripts if kind == "application/json"]
    assert 2 == len(data)
    assert HOSTILE == json.loads(data[0])["labels"][1][2]
    assert all(not re.search("[<>&\u2028\u2029]", text) for text in data)


def test_blocks_stand_in_the_order_they_are_stacked(tmp_path):
    """The data of a picture is sorted by band, from the bottom up, and then by begin."""
    page = written(tmp_path, lives=[many_lives(300)])

    data = json.loads(page.scripts[0][1])
    bands = [data["labels"][label][0] for label in data["blocks"]["label"]]
    names = [band["name"] for band in data["bands"]]
    assert ["parameter", "gradient", "activation", "workspace", "temporary"] == names[:5]
    assert ["cached", "context"] == names[5:]
    assert sorted(zip(bands, data["blocks"]["made"], strict=True)) == list(
        zip(bands, data["blocks"]["made"], strict=True)
    )


def test_many_blocks_are_summed_without_losing_the_peak():
    """The small blocks of a long life are summed, never below what they hold."""
    lives = many_lives(4000)
    fewer = without_small(lives, 500, stretches=100)

    whole, summed = lives.allocated_bytes(), fewer.allocated_bytes()
    assert 500 < len(fewer.made) <= 500 + 5 * 100
    assert (summed >= whole).all()
    assert summed.max() <= 1.2 * whole.max()
    assert "3,500 blocks of up to" in fewer.notes[0]
    assert lives is without_small(lives, 4000)


def test_toy_adds_up():
    """Blocks count after the event that makes them and no more after the one that frees them."""
    assert [4, 4, 8, 10, 8, 4] == (toy_lives().allocated_bytes() // MIB).tolist()
    assert np.int64 == toy_lives().allocated_bytes().dtype


def test_charts_have_words_and_whole_epochs(tmp_path):
    """A run's curves say where they begin and end; epochs are whole; one dot is no line."""
    folder = write_run_folder(tmp_path / "run")
    page = written(tmp_path, run_folder=folder, plans=[sample_plan()], probes=[sample_probe()])

    charts = [names["aria-label"] for tag, names in page.tags if tag == "svg" and "role" in names]
    titles = [words.partition(":")[0] for words in charts]
    assert "Scores on validation (measured)" in titles
    assert "Memory, measured and predicted" in titles
    assert "What more memory buys (predicted)" in titles
    assert "Peak memory by micro-batch (predicted)" in titles
    assert "2.5" not in page.texts
    assert any("device-used (measured) " in words and " at last" in words for words in charts)


def test_a_chart_without_numbers_is_none():
    """What was not recorded leaves no empty axes."""
    nothing = Series(name="loss", xs=(1.0,), ys=(float("nan"),))

    assert "" == chart_html("Loss", [nothing], x_name="Epoch", y_name="Loss")
    alone = Series(name="loss", xs=(3.0,), ys=(0.0,))
    assert "<circle" in chart_html("Loss", [alone], x_name="Epoch", y_name="Loss")


def test_a_runs_pictures_stand_in_the_page(tmp_path):
    """PNG files are within it, anything else under their names is left out."""
    folder = write_run_folder(tmp_path / "run")
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "plots/train_batch_1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    (folder / "plots/labels.png").write_text("<script>")
    page = written(tmp_path, run_folder=folder)

    sources = [names["src"] for tag, names in page.tags if tag == "img"]
    assert 1 == len(sources)
    assert sources[0].startswith("data:image/png;base64,iVBOR")


def test_diff_page_says_what_grew(tmp_path):
    """Two answers compared give the sentences of the terminal."""
    probe = sample_probe()
    pair = (holdings_of(probe, "a.json"), holdings_of(probe, "b.json"))
    page = Document(write_diff_html(tmp_path / "d.html", [pair], command="memplan report --diff"))

    assert "As much device-used" in page.text


def test_file_is_not_overwritten_unasked(tmp_path):
    """An existing page stays unless forced, and nothing to report is said so."""
    write_html(tmp_path / "x.html", lives=[toy_lives()], command="c")

    with pytest.raises(BadInputError, match="--force"):
        write_html(tmp_path / "x.html", lives=[toy_lives()], command="c")
    with pytest.raises(BadInputError, match="nothing to report"):
        write_html(tmp_path / "y.html", command="c")
