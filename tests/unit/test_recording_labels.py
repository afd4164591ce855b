"""Labels of allocations where the allocator keeps none: those before PyTorch 2.11."""

import json
import subprocess
import sys

from memplan.device import catalogue
from memplan.phantom.launch import environment

TRAINS = """
import json

import torch
from torch import nn

from memplan.recording.labels import NAME, Labels
from memplan.recording.modules_seen import ModulesSeen

HISTORY = %d

torch.cuda.init()
torch.zeros(1000, device="cuda")
torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=HISTORY)
kept, counted = Labels(0, are_kept=True), Labels(0, are_kept=False)


def tell(text):
    kept.tell(text)
    counted.tell(text)


seen = ModulesSeen(tell)
seen.install()
layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
net = nn.Sequential(*layers).cuda()
optimizer = torch.optim.Adam(net.parameters())
for _ in range(3):
    seen.set_phase("forward")
    net(torch.rand(4, 3, 8, 8).cuda()).square().sum().backward()
    seen.set_phase("optimizer_step")
    optimizer.step()
    optimizer.zero_grad()
trace = torch.cuda.memory._snapshot(0)["device_traces"][0]
events = [one for one in trace if one["action"] in {"alloc", "free_requested"}]
own = [one.pop(NAME) for one in events]
counted.write_into(trace)
print(json.dumps([own, [one[NAME] for one in events]]))
"""


def labels(most_events):
    """Return PyTorch's own labels of a history, and those that were counted beside it."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINS % most_events],
        env=environment(catalogue.card("rtx-3090")),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def differing(own, counted):
    assert len(own) == len(counted)
    return [pair for pair in zip(own, counted, strict=True) if pair[0] != pair[1]]


def test_labels_counted_beside_the_allocator_are_its_own():
    """But for the last free of a backward, which the thread makes that began it."""
    own, counted = labels(100_000)

    assert {"forward\x1f", "backward\x1f", "optimizer_step\x1f"} < set(own)
    assert len(set(own)) > 10
    assert {"backward\x1f"} == {one for one, _ in differing(own, counted)}
    assert 3 == len(differing(own, counted))


def test_a_history_that_begins_late_has_the_labels_of_what_it_holds():
    """Old events give way to new ones, which keep their places."""
    own, counted = labels(100)

    assert 20 < len(own) <= 100
    assert 1 >= len(differing(own, counted))


def test_backward_begins_with_a_label_of_its_own():
    """Not with that of the module in which the last one ended: the loss is outside all modules."""
    own, _ = labels(100_000)
    begins = [
        index
        for index in range(1, len(own))
        if own[index].startswith("backward") and not own[index - 1].startswith("backward")
    ]

    assert ["backward\x1f"] * 3 == [own[index] for index in begins]
