"""`probe --mode val|predict`: what running a trained network takes."""

import pytest
import torch

from memplan.advise.inference import check_mode, check_mode_options
from memplan.advise.question import Question
from memplan.answers import ProbeAnswer
from memplan.device.catalogue import card
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.replay import replay
from memplan.errors import UsageError
from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.trace.inference import record_inference
from memplan.workload import Workload

FP32 = StepSpec(precision="fp32")
RUNS = Life(trains=False)


class Plain(Workload):
    """A linear layer of 1,024 by 2,048 numbers on rows of 4 KiB."""

    name = "plain"
    image_size = 32

    def build_model(self):
        """Return it."""
        return torch.nn.Linear(1024, 2048, bias=False)

    def make_batch(self, micro_batch_size):
        """Return zeros."""
        return {"images": torch.zeros(micro_batch_size, 1024)}

    def compute_loss(self, model, batch):
        """Return what nothing here looks at."""
        raise NotImplementedError


def test_a_pass_takes_weights_input_and_output():
    """8 MiB of weights, 256 rows of 4 KiB, as many results of 8 KiB: counted by hand."""
    tape = record_inference(Plain(), 256, FP32, mode="predict")
    peaks = replay(tape, card("a100-80gb"), life=RUNS)
    lasting = sum(
        int(tape.events.requested_bytes[row])
        for row in range(len(tape.events.kind))
        if tape.events.section[row] == 0
    )

    assert 8 << 20 == lasting
    assert (8 << 20) + 256 * (4 << 10) + 256 * (8 << 10) <= peaks.allocated_peak_bytes
    assert peaks.allocated_peak_bytes < (8 << 20) + 256 * (12 << 10) + (33 << 20)  # and cuBLAS's
    assert "inference" == peaks.peak_period


def test_passes_repeat_and_leave_nothing():
    """The life is the weights and the same pass again and again, which ends where it began."""
    tape = record_inference(Plain(), 4, FP32, mode="val")
    program = Program(tape, RUNS)
    sizes = program.sizes(tape.events.requested_bytes, DeviceBytes.none(tape))
    live = program.live_by_category(sizes).sum(axis=0)

    assert {"build", "inference"} == {program.place(event)[0] for event in range(len(live))}
    assert 8 << 20 == live[-1]


@pytest.mark.parametrize(("half", "dtype_bytes"), [(False, 4), (True, 2)])
def test_a_detector_runs_merged_and_without_its_auxiliary_branch(half, dtype_bytes):
    """The weights are those of an export, 2 bytes each in half precision."""
    workload = make_workload("yolov9-t", {"image_size": 64})
    tape = record_inference(workload, 1, FP32, mode="predict", half=half)
    weights = sum(one.numel() for one in workload.build_inference().parameters())
    events = tape.events
    loaded = int(events.requested_bytes[(events.section == 0)].sum())

    assert weights == tape.description.parameters
    assert pytest.approx(weights * dtype_bytes, rel=0.01) == loaded
    assert not any(".bn" in module.path for module in tape.modules)


def test_validation_takes_larger_images():
    """`val` pads to the stride and half of it more, as the command does; `predict` does not."""
    workload = make_workload("yolov9-t", {"image_size": 64})

    assert 96 == workload.make_inference_batch(1, "val").shape[-1]
    assert 64 == workload.make_inference_batch(1, "predict").shape[-1]


@pytest.mark.parametrize(
    ("mode", "half", "given", "message"),
    [
        ("test", False, (), "--mode test is not offered"),
        ("train", True, (), "--half is for --mode val and predict"),
        ("val", False, ("lean",), "--lean is of training"),
        ("predict", False, ("data_path",), "--data is of training"),
    ],
)
def test_options_of_training_are_refused(mode, half, given, message):
    """What has no meaning in a mode is refused by name."""
    with pytest.raises(UsageError, match=message):
        check_mode_options(mode, half=half, given=given)


@pytest.mark.parametrize(
    ("question", "half", "message"),
    [
        ({"devices": 2}, False, "--devices 2"),
        ({"spec": StepSpec(precision="amp-fp16")}, False, "--precision amp-fp16"),
        ({"workload": "torchvision:resnet18"}, True, "--half"),
        ({"workload": "torchvision:ssd300_vgg16"}, False, "depends on how much it detects"),
    ],
)
def test_what_no_network_is_run_with_is_refused(question, half, message):
    """Several devices, a precision of training, and sizes that only values tell."""
    values = {"workload": "yolov9-t", "spec": FP32} | question
    with pytest.raises(UsageError, match=message):
        check_mode(Question(**values), "predict", half=half)


def test_the_answer_says_its_mode():
    """`mode` and `half` are in the JSON, with training as what earlier files mean."""
    fields = ProbeAnswer.__dataclass_fields__

    assert ("train", False) == (fields["mode"].default, fields["half"].default)
