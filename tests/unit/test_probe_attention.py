"""Cards on which attention runs other operators are probed from recordings of their own."""

from torch import nn
from trace_toy import Counted

from memplan.advise.probing import probe_many
from memplan.advise.question import Question


class Attends(nn.Module):
    """Attention between the pixels of a small map, then a sum."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 3 * 64)

    def forward(self, x):
        """Return a number an image."""
        rows = x.flatten(2).transpose(1, 2)
        query, key, value = self.project(rows).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(query, key, value).mean((1, 2, 3))


class Attention(Counted):
    """A workload of it."""

    name = "attends"

    def build_model(self):
        """Return the network."""
        return Attends()


def peaks(*cards):
    """Return the allocated peak at batch 8 by card, and the order of the answers."""
    answers = probe_many(Question(workload=Attention(), gpus=cards), [8])
    assert list(cards) == [answer.gpu.name for answer in answers]
    return {answer.gpu.name: answer.batches[0].allocated_peak_bytes for answer in answers}


def test_each_card_is_answered_as_it_is_alone():
    """A T4 has no flash attention; asked beside an A100, it still has not."""
    alone = peaks("t4") | peaks("a100-40gb") | peaks("rtx-3090")
    together = peaks("rtx-3090", "t4", "a100-40gb")

    assert alone == together
    assert alone["t4"] != alone["a100-40gb"]
