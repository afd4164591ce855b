"""A run that follows a plan: its settings replace the options', its predictions are recorded."""

from dataclasses import replace

import pandas as pd
import pytest
from levers import other_value
from train_toy import Toy, toy_options

from memplan.answers import GpuFacts, PlanAnswer, Predicted, Setting, WorkloadFacts, load_answers
from memplan.errors import DeviceOutOfMemoryError, UsageError
from memplan.spec import LEVERS, Split, StepSpec
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint
from memplan.training.setup import follow_plan


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
        spec=StepSpec(precision="fp32"),
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
        "spec": StepSpec(precision="fp32", memory_format="channels-last", recompute=("0",)),
        "split": Split(micro_batch_size=2, accumulation_steps=4),
        "nominal_batch_size": 4,
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


def test_a_run_that_finds_no_room_names_the_setting_that_would_fit(tmp_path):
    """The fastest of the plan's other settings that takes less; what takes more is no way out."""
    plan = _plan()

    def setting(size, used, speed, **levers):
        predicted = replace(
            plan.predicted, device_used_peak_bytes=used << 20, images_per_second=speed
        )
        split = Split(micro_batch_size=size, accumulation_steps=8 // size)
        spec = replace(plan.spec, **levers)
        return Setting(spec=spec, split=split, nominal_batch_size=4, predicted=predicted)

    others = (setting(4, 9, 9.0), setting(1, 1, 5.0), setting(1, 2, 6.0, lean=True))
    most = replace(plan.predicted, device_used_peak_bytes=4 << 20)
    tight = replace(plan, predicted=most, alternatives=others)
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        train(Toy(most_images=0), toy_options(tmp_path), plan=tight)

    text = "takes 2.00 MiB (predicted): --batch-per-device 1 --accumulate 8 "
    assert text in str(caught.value)
    assert "--lean" in str(caught.value)
    assert "Everything is saved. Continue with: memplan train --resume" in str(caught.value)


def test_a_run_without_a_plan_that_finds_no_room_names_the_command_that_plans(tmp_path):
    """As typed, for the device that it was trained on."""
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        train(Toy(most_images=0), toy_options(tmp_path, cfg="yolov9-t"))

    planned = f"--auto-batch --cfg yolov9-t --data {tmp_path}/data.yaml --img 8 --device cpu."
    assert f"Planned to fit: memplan train {planned}" in str(caught.value)


def test_a_plan_for_another_training_is_refused(tmp_path):
    """A plan holds for one workload at one image size."""
    facts = WorkloadFacts(
        name="toy",
        img=16,
        spec=StepSpec(precision="fp32"),
        parameters=257,
    )
    with pytest.raises(UsageError, match="The plan is for toy at 16 pixels, not for toy at 8"):
        train(Toy(), toy_options(tmp_path), plan=_plan(workload=facts))


@pytest.mark.parametrize("lever", [one for one in LEVERS if one.is_predicted], ids=str)
def test_a_run_takes_each_lever_from_its_plan(tmp_path, lever):
    """What the options say of it does not matter: the step that runs is the one predicted."""
    value = other_value(lever)
    options = toy_options(tmp_path, **{lever.name: value})
    plan = _plan()

    assert plan.spec is follow_plan(options, plan, Toy()).spec
    other = replace(plan, spec=replace(plan.spec, **{lever.name: value}))
    assert other.spec is follow_plan(toy_options(tmp_path), other, Toy()).spec
