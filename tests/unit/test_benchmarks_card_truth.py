"""Card truth: what is compared with what, and that the page says what the rows say."""

import csv
from dataclasses import replace
from itertools import islice

import pytest

from benchmarks.card_truth import cards, convolutions, page, picture, snapshots, versions
from benchmarks.card_truth.networks import ImageClassifier
from benchmarks.card_truth.row import Row
from benchmarks.card_truth.yolov8 import Classifier, Detector
from benchmarks.common import RESULTS
from benchmarks.one_by_one import refused_products
from memplan.convolution import ConvolutionProblem
from memplan.device import nvml
from memplan.device.one_by_one import PRODUCT_BYTES
from memplan.units import MIB

ROW = Row(
    kind="A table",
    case="a case",
    card="T4",
    figure="reserved",
    measured_bytes=100 * MIB,
    predicted_bytes=110 * MIB,
    low_bytes=104 * MIB,
    high_bytes=112 * MIB,
    source="somebody",
)
POINT = {
    "dtype": "float32",
    "input": (2, 64, 14, 14),
    "weight": (32, 64, 1, 1),
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
}


def test_errors_are_of_the_measurement():
    """The prediction is off by a tenth; what it leaves open begins 4 % above."""
    assert pytest.approx(0.10) == ROW.error
    assert pytest.approx(0.04) == ROW.range_error
    assert ROW.is_miss
    assert not replace(ROW, is_bound=True).is_miss


def test_a_measured_range_is_compared_as_one():
    """Inside it there is no error; outside, the nearer end counts."""
    wide = replace(ROW, measured_bytes=80 * MIB, measured_high_bytes=120 * MIB)

    assert 0 == wide.error == wide.range_error
    assert pytest.approx(-0.25) == replace(wide, predicted_bytes=60 * MIB).error
    assert pytest.approx(0.25) == replace(wide, predicted_bytes=150 * MIB).error


def test_a_run_that_ran_out_has_a_verdict_and_no_error():
    """How far it got is no measurement of what it needs."""
    ran_out = replace(ROW, ran_out=True, predicted_to_run_out=False)

    assert ran_out.error is None
    assert not ran_out.is_miss
    assert ran_out.is_wrong_verdict
    assert not replace(ran_out, predicted_to_run_out=True).is_wrong_verdict


def test_convolutions_meet_the_recorded_bytes_and_1x1_to_its_alignment():
    """Of one version or two, equal to the byte; the one of 1x1 has its own table, 256 more."""
    rows = page.by_kind(convolutions.convolutions())

    ordinary = {(row.card, row.case): row.error for row in rows[convolutions.ORDINARY]}
    assert 9 == len(ordinary)
    assert {0.0} == {error for (card, _), error in ordinary.items() if "PRO" not in card}
    (point,) = rows[convolutions.ONE_BY_ONE]
    assert 4 * MIB == point.measured_bytes
    assert PRODUCT_BYTES == point.predicted_bytes


def test_a_rank_of_eight_is_met_by_the_rules_of_its_torch():
    """Gradients that stay and no cuBLAS workspace: within 0.2 %, where today's rules lack 0.9 %."""
    (row,) = islice(cards.in_data_parallel(), 1)

    assert abs(row.error) < 0.002
    assert 8252 == int(row.remark.split()[0])


@pytest.mark.parametrize(
    ("network", "parameters"),
    [(Detector(3), 3_011_433), (Detector(4), 3_011_628), (Classifier(15), 1_457_503)],
)
def test_described_networks_have_the_parameters_their_logs_print(network, parameters):
    """The description is checked by numbers that training logs printed."""
    assert parameters == sum(one.numel() for one in network.parameters())


def test_every_data_file_is_read():
    """All rows have a source or a configuration, and a figure above 0."""
    names = {path.name for path in cards.DATA.glob("*.csv")}
    assert len(names) == 5
    for name in names:
        for row in cards.read(name):
            figures = [key for key in row if key.endswith(("_mib", "_bytes", "_max"))]
            assert row.get("source") or row["config"], name
            assert all(float(row[key]) > 0 for key in figures), name


def test_without_a_driver_cudnn_seeks_cublaslt_for_products_in_vain():
    """Its log names the failure for a 1x1 convolution, and nothing for stride 2."""
    if nvml.present():
        pytest.skip("a driver is here, so nothing is refused")
    _, refused = refused_products(ConvolutionProblem(kind="forward", **POINT), "a100-40gb")
    strided = ConvolutionProblem(kind="forward", **{**POINT, "stride": (2, 2)})

    assert refused > 0
    assert 0 == refused_products(strided, "a100-40gb")[1]


def test_cudnn_is_known_from_the_torch_wheel():
    """Releases 2.1 to 2.9 for CUDA 12 name theirs; others are not guessed."""
    assert versions.cudnn_of("2.3.1+cu121").startswith("8.9.2")
    assert versions.cudnn_of("2.4.0+cu121").startswith("9.1.0")
    assert versions.cudnn_of("2.8.0+cu126").startswith("9.10.2")
    assert "" == versions.cudnn_of("2.11.0+cu128") == versions.cudnn_of("2.2.0")
    assert "not stated" == versions.same_as_ours("", "")
    assert "no" == versions.same_as_ours("2.6.0", "")


def test_a_folder_of_snapshots_is_named_file_by_file(tmp_path):
    """What is no snapshot is a row that says why."""
    (tmp_path / "owner+repository+1.pickle").write_bytes(b"no pickle")
    (tmp_path / "notes.txt").write_text("nothing")
    (row,) = snapshots.snapshots(tmp_path)

    assert (None, "owner repository 1") == (row.predicted_bytes, row.source)
    assert "owner+repository+1.pickle" in row.remark


def test_smoothed_labels_keep_the_loss():
    """Smoothing follows its definition: a share of the mean over all classes."""
    import torch

    workload = ImageClassifier("toy", torch.nn.Identity, 1, smoothing=0.1)
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    loss, _ = workload.compute_loss(lambda _: logits, {"images": logits, "labels": labels})

    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert pytest.approx(float(expected)) == float(loss)


def test_the_page_says_what_the_rows_say():
    """The document's tables are those made of the csv, so neither is edited by hand."""
    rows = page.read_csv(RESULTS / f"{page.NAME}.csv")
    text = page.DOCUMENT.read_text(encoding="utf-8")

    assert text == page.with_parts(text, page.written_parts(rows))
    assert all(row.source for row in rows)
    assert all(row.remark for row in rows if row.predicted_bytes is None)


def test_rows_survive_their_csv(tmp_path):
    """Numbers, words and what is missing come back as they were."""
    rows = [ROW, replace(ROW, predicted_bytes=None, low_bytes=None, remark="why", ran_out=True)]
    page.write_csv(tmp_path / "rows.csv", rows)

    assert rows == page.read_csv(tmp_path / "rows.csv")


def test_the_picture_has_a_dot_for_each_compared_row():
    """A row beyond the edge is an arrow there; one with nothing to compare is not drawn."""
    far = replace(ROW, predicted_bytes=200 * MIB, high_bytes=210 * MIB)
    figure = picture.draw([ROW, far, replace(ROW, kind="Other", ran_out=True)])
    (axes,) = figure.axes

    assert 2 == len(axes.collections) == len(axes.lines) - 1
    assert 0.35 == axes.collections[-1].get_offsets()[0][0]


def test_the_csv_has_every_row_of_the_data():
    """No row was dropped on the way, those that are not predicted included."""
    with (RESULTS / f"{page.NAME}.csv").open(encoding="utf-8") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    files = {
        cards.PLAIN: "a100_device_used.csv",
        cards.TIMM: "a100_timm_device_used.csv",
        cards.IN_DDP: "mmaction2_tsn.csv",
    }
    for kind, name in files.items():
        assert len(cards.read(name)) == kinds.count(kind)
