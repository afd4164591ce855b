"""Lives of blocks that can be counted by hand, and large ones."""

import numpy as np

from memplan.blocks import BlockLabel, BlockLives

MIB = 1 << 20
HOSTILE = (
    "</script><script>document.title='taken'</script>\"'&<img src=x onerror=alert(1)>"
    "\u2028\u2029\ud800"
)


def toy_lives(**changes):
    """Two blocks of 4 MiB that overlap, between them 2 MiB for one event, over six events."""
    labels = (
        BlockLabel(band="parameter", tensor="1024 x 1024, float32"),
        BlockLabel(
            band="activation",
            tensor="8 x 64, float16",
            module="layer1.conv Conv2d",
            operator="convolution",
            line="net.py:12 forward",
        ),
        BlockLabel(band="workspace", module="layer1.conv Conv2d", operator="convolution"),
    )
    columns = {
        "made": [0, 2, 3],
        "freed": [6, 5, 4],
        "num_bytes": [4 * MIB, 4 * MIB, 2 * MIB],
        "label": [0, 1, 2],
    }
    arrays = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    values = {
        "title": "a toy",
        "origin": "simulated",
        "num_events": 6,
        "labels": labels,
        "phases": (("build", "transfer", 0), ("first_step", "forward", 2)),
        "reserved_bytes": np.array([4, 4, 8, 12, 12, 12]) * MIB,
        "context_bytes": MIB,
        "capacity_bytes": 16 * MIB,
    }
    return BlockLives(**{**arrays, **values, **changes})


def many_lives(num_blocks):
    """A sawtooth of so many blocks: each allocated and freed once, two events a block."""
    rng = np.random.default_rng(14)
    num_events = 2 * num_blocks
    made = np.arange(num_blocks) * 2
    lengths = rng.integers(1, 600, num_blocks)
    labels = tuple(
        BlockLabel(
            band=("parameter", "gradient", "activation", "workspace", "temporary")[i % 5],
            tensor=f"16 x {i} x 40 x 40, float16",
            module=f"model.{i}.cv1 Conv",
            operator="convolution",
            line=f"yolov9/blocks.py:{i} forward",
        )
        for i in range(500)
    )
    freed = np.minimum(made + lengths, num_events)
    num_bytes = rng.integers(1, 1 << 12, num_blocks) * 512
    label = rng.integers(0, len(labels), num_blocks)
    lives = toy_lives(
        title="many blocks", num_events=num_events, made=made, freed=freed, num_bytes=num_bytes,
        label=label, labels=labels, phases=(), capacity_bytes=None,
    )  # fmt: skip
    reserved = np.maximum.accumulate(lives.allocated_bytes())
    return toy_lives(**{**vars(lives), "reserved_bytes": reserved})
