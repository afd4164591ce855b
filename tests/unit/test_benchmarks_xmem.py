"""The xMem benchmark: which step is replayed, and how predictions are judged."""

import csv
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import torch

from benchmarks import accuracy_xmem
from benchmarks.accuracy_xmem import ROWS, Prediction, Row, predict, read_rows, summary
from benchmarks.xmem_step import Training, record_training, replay_training
from benchmarks.xmem_workloads import CNNS, cnn_training
from memplan import tape as tapes
from memplan.device import catalogue
from memplan.errors import BadInputError
from memplan.units import GIB, MIB

CARD = catalogue.card("rtx-3060-12gb")


def _row(**changes):
    row = Row(
        path=PurePosixPath("plot/data/002-Monte Carlo/CNN/001/a_1/card/evaluation_result.json"),
        model="MnasNet",
        optimizer="SGD",
        batch_size=2,
        gpu="NVIDIA GeForce RTX 3060",
        capacity_bytes=12 * GIB,
        ground_bytes=1000 * MIB,
        ran_out=False,
        estimates={"xMem": 900 * MIB, "DNNMem": 1100 * MIB, "SchedTune": 13 * GIB},
        xmem_seconds=10.0,
    )
    return replace(row, **changes)


def _prediction(row, reserved_bytes, *, runs_out=False):
    return Prediction(
        row=row,
        reserved_bytes=reserved_bytes,
        runs_out=runs_out,
        parameter_bytes=0,
        seconds=1.0,
        unknown_operators=frozenset(),
    )


class _Wide(torch.nn.Module):
    """A weight of 4 MiB whose output for eight numbers is 32 MiB."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, MIB))

    def forward(self, numbers):
        return numbers * self.weight.detach()


def _wide_training(*, zeroes_before_forward=True):
    return Training(
        build_model=_Wide,
        make_batch=lambda: {"numbers": torch.zeros(8, 1)},
        compute_loss=lambda model, batch: (model(batch["numbers"]), model.weight.sum()),
        after_step=lambda _: None,
        optimizer="SGD",
        zeroes_before_forward=zeroes_before_forward,
    )


def _reserved(training):
    return replay_training(
        record_training(training), CARD, has_matrix_workspace=False
    ).reserved_bytes


def test_outputs_live_until_the_next_forward_pass_has_made_its_own():
    """Two outputs of 32 MiB, one segment each for weight with gradient and for what is small."""
    expected = 2 * 32 * MIB + 20 * MIB + 2 * MIB

    assert expected == _reserved(_wide_training())


def test_a_parameter_that_two_modules_share_is_moved_once():
    """Tied weights are one allocation, as `Module.to` leaves them."""

    class Tied(_Wide):
        def __init__(self):
            super().__init__()
            self.other = _Wide()
            self.other.weight = self.weight

    tied = replace(_wide_training(), build_model=Tied)
    weights = record_training(tied).events.requested_bytes == 4 * MIB
    alone = record_training(_wide_training()).events.requested_bytes == 4 * MIB

    assert alone.sum() == weights.sum()


def test_networks_that_compute_their_widths_with_tensors_are_built_whole():
    """RegNet asks tensors for numbers while it is built, so it is built with real ones."""
    training = cnn_training("RegNetX400MF", "SGD", 2, zeroes_before_forward=True)
    recording = record_training(training)
    model = training.build_model()
    expected = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])

    assert expected == recording.parameter_bytes
    assert not recording.unknown_operators


def test_every_iteration_asks_for_the_same_convolutions():
    """Workspaces are asked for in each of the four iterations."""
    training = cnn_training("MobeNetV3Small", "SGD", 2, zeroes_before_forward=True)
    recording = record_training(training)
    asks = recording.events.about[recording.events.asks == tapes.CONVOLUTION]

    assert 0 == len(asks) % 4
    assert len(recording.convolutions) == len(set(asks.tolist()))


def test_memory_that_does_not_suffice_is_a_verdict():
    """A card too small for two outputs runs out; the need is told all the same."""
    recording = record_training(_wide_training())
    small = CARD.with_capacity(CARD.context_bytes + 60 * MIB)
    run = replay_training(recording, small, has_matrix_workspace=False)

    assert run.runs_out
    assert _reserved(_wide_training()) == run.reserved_bytes


def test_the_kept_rows_are_all_of_known_models():
    """Each record names a card of the catalogue and a model of the study."""
    rows = read_rows(ROWS)

    assert 40 == len(rows)
    assert all(row.model in CNNS or row.is_transformer for row in rows)
    assert {"rtx-3060-12gb", "rtx-4060"} == {catalogue.card(row.gpu).name for row in rows}


def test_campaigns_differ_in_their_settings():
    """Records of the first campaign had no cuBLAS workspace; one record zeroes after forward."""
    first = _row()
    named = PurePosixPath("plot/data/x/CNN/002/ConvNeXtBase_Adam_209_0_d8bb/card/result.json")

    assert first.is_first_campaign
    assert first.zeroes_before_forward(null_mode=0)
    assert not first.zeroes_before_forward(null_mode=1)
    assert not _row(path=named).is_first_campaign
    assert not _row(path=named).zeroes_before_forward(null_mode=0)


def test_a_file_without_the_columns_is_refused_in_one_line(tmp_path):
    """The message names the file and what to give instead."""
    path = tmp_path / "rows.csv"
    path.write_text("path,model\na/b/c/d/001/e,VGG16\n", encoding="utf-8")

    with pytest.raises(BadInputError, match=r"rows\.csv cannot be read .* xmem_dev\.csv"):
        read_rows(path)


def test_an_estimate_above_the_card_is_a_verdict_of_running_out():
    """Published tools are judged by their estimate, memplan by its replay."""
    one = _prediction(_row(), 900 * MIB)

    assert not one.is_wrong()
    assert not one.is_wrong("xMem")
    assert one.is_wrong("SchedTune")


def test_the_summary_counts_under_estimates_apart():
    """Rows that ran out give a verdict and no error."""
    row = _row()
    out = _row(ran_out=True)
    ones = [
        _prediction(row, 900 * MIB),
        _prediction(row, 980 * MIB),
        _prediction(row, 1010 * MIB),
        _prediction(out, 20 * GIB),
    ]

    assert (
        "memplan: median error 2.0%, 90th percentile 8.4%, worst 10.0%; under-estimates 2 of 3, "
        "1 by more than 5 %; wrong verdicts 1 of 4, 1 of them «fits»; 1.0 s a case, worst 1.0."
    ) == summary(ones)


def test_rows_of_another_file_are_predicted_and_not_kept(tmp_path, capsys, monkeypatch):
    """`--rows` prints a table; a model the study does not have is left out by name."""
    with ROWS.open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        cells = next(c for c in reader if c["model"] == "MobeNetV3Small")
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerows([{**cells, "batch": "2"}, {**cells, "model": "Perceptron"}])
    monkeypatch.setattr(accuracy_xmem, "warm_up", lambda: None)
    monkeypatch.setattr(accuracy_xmem, "publish", None)

    accuracy_xmem.main(["--rows", str(path)])
    shown = capsys.readouterr()

    assert "MobeNetV3Small" in shown.out
    assert "Perceptron" not in shown.out
    assert "Perceptron_AdamW_553: left out" in shown.err


def test_small_batches_reserve_less():
    """The prediction of a record follows its batch."""
    small, large = (predict(_row(batch_size=size)).reserved_bytes for size in (2, 64))

    assert small < large
