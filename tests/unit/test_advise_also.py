"""What the command line asks beside a plan, `memplan.plan(also=...)` asks too."""

from trace_toy import Counted

import memplan


def test_python_asks_beside_a_plan():
    """The second card and the headroom are in the answer; what was not asked is not."""
    answer = memplan.plan(
        Counted(validates=True),
        gpu="rtx-3090",
        effective_batch=16,
        precision="fp32",
        recompute=(),
        also=(memplan.Headroom(), memplan.SecondCard()),
    )

    assert answer.second_card.split.effective_batch_size == 16
    assert answer.edge.next_micro_batch_size == answer.split.micro_batch_size + 1
    assert answer.cards is None
    assert not answer.largest_image
