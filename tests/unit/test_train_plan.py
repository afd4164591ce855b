"""A run that follows a plan: its settings replace the options', its predictions are recorded."""

from dataclasses import replace

import pandas as pd
import pytest
from train_toy import Toy, toy_options

from memplan.answers import GpuFacts, PlanAnswer, Predicted, WorkloadFacts, load_answers
from memplan.errors import UsageError
from memplan.train import TrainOptions, train
from memplan.train.checkpoint import load_checkpoint
from memplan.train.setup import follow_plan


def _plan(**changes):
    predicted = Predicted(
        allocated_peak_bytes=1000,
        reserved_peak_bytes=2000,
        device_used_peak_bytes=3000,
        peak_phase="backward",
        images_per_second=10.0,
        epoch_seconds=None,
    )
    workload = WorkloadFacts(
        name="toy",
        img=8,
        precision="fp32",
        memory_format="contiguous",
        optimizer="SGD",
        recompute=(),
        parameters=257,
    )
    gpu = GpuFacts(
        name="t4",
        capacity_bytes=1 << 34,
        context_bytes=0,
        context_uncertainty_bytes=0,
        source="catalogue",
    )
    values = {
        "workload": workload,
        "gpu": gpu,
        "micro_batch_size": 2,
        "accumulation_steps": 4,
        "effective_batch_size": 8,
        "nominal_batch_size": 4,
        "precision": "fp32",
        "memory_format": "channels-last",
        "recompute": ("0",),
        "allocator": "",
        "devices": 1,
        "predicted": predicted,
        "budget_bytes": 1 << 34,
        "headroom_bytes": 0,
        "alternatives": (),
        "command": "memplan train",
        "versions": {},
        "seconds": 0.1,
    }
    return PlanAnswer(**(values | changes))


def test_a_plan_s_settings_replace_the_options(tmp_path):
    """Batch, accumulation, layout and recompute are the plan's, and the records say so."""
    plan = _plan()
    summary = train(Toy(), toy_options(tmp_path, batch=1, effective_batch=3), plan=plan)

    table = pd.read_csv(summary.run_folder / "results.csv")
    checkpoint = load_checkpoint(summary.run_folder / "weights/last.pt")
    assert ([2, 2], [4, 4]) == (
        table["micro_batch_size"].tolist(),
        table["accumulation_steps"].tolist(),
    )
    assert ("channels-last", ["0"]) == (
        checkpoint.options["memory_format"],
        checkpoint.options["recompute"],
    )
    assert [plan] == load_answers(summary.run_folder / "plan.json")


def test_memory_rows_carry_the_prediction(tmp_path):
    """Each row holds what was predicted beside what was measured."""
    summary = train(Toy(), toy_options(tmp_path), plan=_plan())

    memory = pd.read_csv(summary.run_folder / "memory.csv")
    assert {1000} == set(memory["predicted_allocated_bytes"])
    assert {2000} == set(memory["predicted_reserved_bytes"])
    assert {3000} == set(memory["predicted_device_used_bytes"])


def test_a_resumed_run_keeps_its_plan_and_its_smaller_batch(tmp_path):
    """After running out of memory and a stop, the run goes on at the size that fitted."""

    def stop(name, facts):
        if name == "saved" and facts["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Toy(most_images=1), toy_options(tmp_path), plan=_plan(), on_event=stop)
    folder = tmp_path / "runs/toy"
    workload = Toy(most_images=1)
    summary = train(workload, TrainOptions(data=folder, resume=folder, device="cpu"))

    assert (1, 8, 0) == (
        summary.micro_batch_size,
        summary.accumulation_steps,
        workload.refused,
    )
    assert {2000} == set(pd.read_csv(folder / "memory.csv")["predicted_reserved_bytes"])


def test_a_plan_for_another_training_is_refused(tmp_path):
    """A plan holds for one workload at one image size."""
    facts = WorkloadFacts(
        name="toy",
        img=16,
        precision="fp32",
        memory_format="contiguous",
        optimizer="SGD",
        recompute=(),
        parameters=257,
    )
    with pytest.raises(UsageError, match="The plan is for toy at 16 pixels, not for toy at 8"):
        train(Toy(), toy_options(tmp_path), plan=_plan(workload=facts))


def test_a_plan_says_in_how_many_parts_objects_are_matched(tmp_path):
    """The workload and the options that are kept follow it; without a say, options stay."""
    workload, options = Toy(), replace(toy_options(tmp_path), assigner_parts=2)
    plan = _plan()
    parted = replace(plan, workload=replace(plan.workload, assigner_parts=4))

    assert 2 == follow_plan(options, plan, workload).assigner_parts
    assert 0 == workload.assigner_parts
    assert 4 == follow_plan(options, parted, workload).assigner_parts == workload.assigner_parts
