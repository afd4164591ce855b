"""The pages of a plan: phases, recomputed blocks, cards side by side, crowded images, claims."""

import dataclasses

import pypdf
import pytest
import report_samples

from memplan.answers import BatchRisk, BlockSaving, PhasePeak, PlanAnswer, RankPeaks, RunRisk
from memplan.plan_answers import CardChoice, CardOption
from memplan.present.plan import crowded_images, plan_sections
from memplan.report import write_report
from memplan.report.alternatives import alternatives_figure, shown_rows
from memplan.report.answers_page import answers_figures
from memplan.report.choice_page import choice_figure
from memplan.report.claims_page import Claim, claims_figures, write_claims
from memplan.report.plan_cards import cards_figure, cards_table
from memplan.report.plan_inside import blocks_figure, phases_figure
from memplan.report.risk_page import risk_figure
from memplan.units import GIB, MIB

RISK = RunRisk(
    num_epochs=500,
    num_images=118_287,
    num_steps=1_848_235,
    safety_fraction=0.025,
    mean_objects=29.4,
    usual_objects=301,
    fullest_objects=344,
    batches=(
        BatchRisk(
            micro_batch_size=16,
            tolerated_objects=None,
            chance=0.0,
            chance_low=0.0,
            chance_high=0.0,
            chance_of_running_out=0.0,
        ),
        BatchRisk(
            micro_batch_size=32,
            tolerated_objects=310,
            chance=0.213,
            chance_low=0.081,
            chance_high=0.47,
            chance_of_running_out=0.00003,
        ),
        BatchRisk(
            micro_batch_size=64,
            tolerated_objects=-1,
            chance=1.0,
            chance_low=1.0,
            chance_high=1.0,
            chance_of_running_out=0.99999,
        ),
    ),
    objects=(0, 4, 28, 61, 190),
    shares=(0.01, 0.1, 0.5, 0.9, 1.0),
)


def _plan(**changes):
    """A plan with everything that pages show."""
    peaks = tuple(
        PhasePeak(period=period, phase=phase, allocated_peak_bytes=share * GIB)
        for period in ("first_step", "steady_step")
        for phase, share in (("forward", 17), ("backward", 15), ("optimizer_step", 1))
    )
    savings = tuple(
        BlockSaving(path=f"model.{i}", activation_bytes=i * 90 * MIB, forward_seconds=i / 1000)
        for i in (2, 4)
    )
    return dataclasses.replace(
        report_samples.sample_plan(),
        phase_peaks=peaks,
        block_savings=savings,
        risk=RISK,
        safety_source="The margin of 2.5% is for the prediction's own error.",
        other_ranks=RankPeaks(
            micro_batch_size=32,
            allocated_peak_bytes=18 * GIB,
            reserved_peak_bytes=19 * GIB,
            device_used_peak_bytes=20 * GIB,
            bucket_bytes=38 * MIB,
        ),
        **changes,
    )


def _texts(figure):
    return [text.get_text() for text in figure.texts] + [
        text.get_text() for axes in figure.axes for text in axes.texts
    ]


def test_a_phase_s_bar_starts_at_the_context_and_is_as_long_as_what_it_holds():
    """White for the context, then what tensors hold; budget and capacity are lines."""
    plan = _plan()
    (axes,) = phases_figure(plan).axes
    bars = axes.patches
    count = len(plan.phase_peaks)

    assert [plan.gpu.context_bytes] * count == [bar.get_width() for bar in bars[:count]]
    assert [p.allocated_peak_bytes for p in plan.phase_peaks] == [
        bar.get_width() for bar in bars[count:]
    ]
    lines = [line.get_xdata()[0] for line in axes.lines]
    used = plan.predicted.device_used_peak_bytes
    assert [plan.gpu.capacity_bytes, plan.budget_bytes, used] == lines


def test_the_phases_page_tells_of_other_ranks_and_of_the_margin():
    """Buckets, other ranks and the margin's origin are sentences under the bars."""
    text = " ".join(_texts(phases_figure(_plan())))

    assert "takes 20.0 GiB device-used at micro-batch 32" in text
    assert "38.0 MiB" in text
    assert "prediction's own error" in text


def test_blocks_are_bars_with_what_they_cost():
    """Each recomputed block states its bytes and its time; the sums stand above."""
    figure = blocks_figure(_plan())
    text = " ".join(_texts(figure))

    assert [180 * MIB, 360 * MIB] == [bar.get_width() for bar in figure.axes[0].patches]
    assert "180 MiB for 2.00 ms" in text
    assert "need not keep 540 MiB" in text


def test_cards_stand_side_by_side():
    """One row a card in the table and in both plots."""
    other = dataclasses.replace(_plan(), gpu=report_samples.A100)
    figure = cards_figure([_plan(), other])
    header, rows = cards_table([_plan(), other])

    assert ["rtx-3090", "a100-80gb"] == [row[0] for row in rows]
    assert {len(header)} == {len(row) for row in rows}
    labels = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert [["rtx-3090", "a100-80gb"]] * 2 == labels


def test_unequal_cards_are_said_to_train_together():
    """A plan with a share of the batch is one of several at work at once."""
    plans = [_plan(share_fraction=0.7), _plan(share_fraction=0.3)]

    assert "train together" in " ".join(_texts(cards_figure(plans)))


def test_the_risk_of_each_batch_is_a_row():
    """Any number, a number, or none fit; chances are never a false 0 or 1."""
    rows = crowded_images(_plan())[1].table.rows
    drawn = set(_texts(risk_figure(_plan())))

    assert ["any number", "310", "not even none"] == [row[1] for row in rows]
    assert ["0%", "21%", "100%"] == [row[2] for row in rows]
    assert ["0%", "below 0.01%", "above 99.99%"] == [row[4] for row in rows]
    assert {cell for row in rows for cell in row} <= drawn


def test_the_chosen_setting_is_in_the_table_however_many_there_are():
    """Of thirty settings twenty-two have room, the chosen thirtieth among them."""
    assert [*range(21), 29] == shown_rows(30, 29)
    assert [0, 1, 2] == shown_rows(3, 2)
    assert list(range(22)) == shown_rows(30, None)


def test_the_chosen_setting_is_told_from_one_that_differs_only_in_lean():
    """Picture and tables mark the plan's own, whichever of the two comes first."""
    plan = report_samples.sample_plan()
    for lean in (False, True):
        twins = [
            dataclasses.replace(s, spec=dataclasses.replace(s.spec, lean=is_lean))
            for s in plan.alternatives[-1:]
            for is_lean in (False, True)
        ]
        own = dataclasses.replace(
            plan, spec=dataclasses.replace(plan.spec, lean=lean), alternatives=tuple(twins)
        )
        figure = alternatives_figure(own)
        labels = [text for text in figure.axes[0].texts if "chosen" in text.get_text()]
        table = next(one.table for one in plan_sections(own) if one.title == "Alternatives")

        assert [f"{1 + lean} chosen"] == [label.get_text() for label in labels]
        assert 1 == sum("chosen" in row for row in table.rows)
        numbers = [text for text in figure.axes[0].texts if text.get_text()[0] in "12"]
        one, other = (text.get_window_extent() for text in numbers)
        assert not one.overlaps(other)


def test_the_risk_page_draws_the_distribution():
    """The curve is the shares given; the sentence states steps, margin and chance."""
    figure = risk_figure(_plan())
    curve = figure.axes[0].lines[0]

    assert list(RISK.objects) == list(curve.get_xdata())
    assert list(RISK.shares) == list(curve.get_ydata())
    text = " ".join(_texts(figure))
    assert "any of 1,848,235" in text
    assert "21%" in text


def test_pages_of_a_plan_come_in_order(tmp_path):
    """Alternatives, phases, blocks and crowds a plan, then the cards."""
    other = dataclasses.replace(_plan(), gpu=report_samples.A100, block_savings=(), risk=None)
    path = write_report(tmp_path / "plan.pdf", plans=[_plan(), other], command="memplan plan")
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    expected = [
        "Training memory: yolov9-s at 640 px",
        "The plan and its alternatives",
        "Phases and margin",
        "What recomputing buys",
        "Crowded images",
        "The plan and its alternatives",
        "Phases and margin",
        "Cards side by side",
    ]
    first, words, last = pages[: len(expected)], pages[len(expected) : -1], pages[-1]

    assert [] == [title for title, page in zip(expected, first, strict=True) if title not in page]
    # What the terminal says, on as many pages as it takes.
    assert len(words) >= 2
    assert all("Plan: " in page for page in words)
    assert "How these numbers came about" in last


def test_a_plan_with_its_insides_is_saved_and_read_back():
    """JSON keeps phases, savings, risk and ranks."""
    plan = _plan()

    assert plan == PlanAnswer.from_json(plan.to_json())


@pytest.mark.parametrize("count", [1, 12])
def test_claims_fill_as_many_pages_as_they_need(tmp_path, count):
    """Every claim, figure and verdict is on a page; the last page has the command."""
    claims = [
        Claim(
            text=f"Claim {i}", found=("Ours: 1 GB (predicted)",), verdict="depends", why="so " * 40
        )
        for i in range(count)
    ]
    figures = claims_figures("Claims", "An article's", claims, [("Command", "python -m x")])
    write_claims(tmp_path / "claims.pdf", figures)
    pages = [page.extract_text() for page in pypdf.PdfReader(tmp_path / "claims.pdf").pages]

    assert all(any(f"Claim {i}" in page for page in pages) for i in range(count))
    assert "python -m x" in pages[-1]
    assert (2 if count == 1 else 4) >= len(pages)


def _card(name, rate, *, fits=True):
    setting = report_samples.sample_setting(16, 4, 5 * GIB, rate)
    return CardOption(
        name=name,
        capacity_bytes=24 * GIB,
        fits=fits,
        spec=setting.spec,
        split=setting.split,
        device_used_peak_bytes=5 * GIB,
        budget_bytes=20 * GIB,
        images_per_second=rate,
        images_per_joule=0.5,
        watts=350,
    )


def test_cards_of_the_catalogue_are_bars_and_those_too_small_are_named():
    """The one that is fastest and smallest says so at its bar's end."""
    cards = (_card("h200", 500.0), _card("rtx-3090", 150.0), _card("t4", 1.0, fits=False))
    choice = CardChoice(
        cards=cards, smallest="rtx-3090", fastest="h200", best_value="h200", value="images/s a watt"
    )
    figure = choice_figure(_plan(cards=choice))
    (axes,) = figure.axes
    ends = [text.get_text() for text in axes.texts]

    assert [500.0, 150.0] == [bar.get_width() for bar in axes.patches]
    assert [
        "500/s, 5.00 GiB of 24.0 GiB: fastest, best value",
        "150/s, 5.00 GiB of 24.0 GiB: smallest",
    ] == ends
    assert "Too small for it: t4." in {text.get_text() for text in figure.texts}


def test_page_one_has_the_command_to_copy():
    """Whole, in its own lines at the foot."""
    (figure,) = answers_figures([], [_plan()])
    words = " ".join(text.get_text() for text in figure.texts)

    assert "Run it" in words
    assert _plan().command in words
