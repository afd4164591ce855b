"""Plans and probes for several cards, of a model small enough to count."""

from trace_toy import Counted

import memplan
from memplan.api import Question
from memplan.api.devices import plan_unequal
from memplan.device.distributed import ModelTensors
from memplan.spec import StepSpec


def test_ddp_s_buckets_are_on_rank_0_and_on_every_other():
    """A probe for two devices names the buckets, and other ranks take no more than rank 0."""
    workload = Counted(keeps_average=True, validates=True)
    probe = memplan.probe(workload, gpu="rtx-3090", batch=4, devices=2, precision="fp32")
    alone = memplan.probe(workload, gpu="rtx-3090", batch=4, precision="fp32")
    tensors = ModelTensors.of(workload.build_model())

    assert alone.other_ranks is None
    assert sum(one.num_bytes for one in tensors.parameters) == probe.other_ranks.bucket_bytes
    rank_0 = probe.batches[0]
    assert probe.other_ranks.allocated_peak_bytes <= rank_0.allocated_peak_bytes
    assert rank_0.allocated_peak_bytes > alone.batches[0].allocated_peak_bytes


def test_unequal_cards_get_a_plan_each_and_one_effective_batch():
    """Shares add up to the batch, and the slower card takes the smaller one."""
    question = Question(
        workload=Counted(), gpus=("a100-80gb", "t4"), devices=2, spec=StepSpec(precision="fp32")
    )
    fast, slow = plan_unequal(question, effective_batch_size=8, free=())

    assert 8 == fast.accumulation_steps * (fast.micro_batch_size + slow.micro_batch_size)
    assert {8} == {fast.effective_batch_size, slow.effective_batch_size}
    assert fast.micro_batch_size >= slow.micro_batch_size
    assert 1 == fast.share_fraction + slow.share_fraction
    assert "5.0%" in slow.safety_source
