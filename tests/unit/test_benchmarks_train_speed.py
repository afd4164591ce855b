"""The benchmark of the step measures every lever, and its predictions differ as levers do."""

import pytest
import torch

from benchmarks import train_speed as speed
from memplan.registry import make_workload

CPU = torch.device("cpu")


def test_levers_are_measured_in_turn():
    """Each variant has a row a round with a rate and bytes; lean and recompute keep less."""
    workload = make_workload("yolov9-t", {"image_size": 64})
    blocks = tuple(workload.recompute_blocks(workload.build_model()))
    variants = [
        speed.Variant(name, workload, settings)
        for name, settings in speed.levers("fp32", blocks, compiles=False).items()
        if name in {speed.PLAIN, "lean", "recompute all"}
    ]
    found = speed.measure_all(variants, CPU, batch_size=1, rounds=2, num_steps=1)
    kept = {name: several[0].peak_bytes for name, several in found.items()}

    assert {2} == {len(several) for several in found.values()}
    assert all(one.images_per_second > 0 for several in found.values() for one in several)
    assert kept["recompute all"] < kept["lean"] < kept[speed.PLAIN]
    assert [1.0, 1.0] == speed.ratios(found, speed.PLAIN)


def test_predictions_are_of_each_lever(monkeypatch):
    """At a small size too, lean blocks take less than the plain step."""
    monkeypatch.setattr(speed, "MODEL", "yolov9-t")
    chosen = (speed.PLAIN, "lean")
    found = speed.predict(image_size=160, batch_size=8, only=chosen)

    assert set(chosen) == set(found)
    assert found["lean"][0] < found[speed.PLAIN][0]
    assert all(rate > 0 for _, rate in found.values())


@pytest.mark.parametrize(("lean", "word"), [(15.9, "met"), (16.1, "missed")])
def test_the_aim_is_judged(lean, word):
    """The remark says met or missed by the figure itself."""
    found = {speed.PLAIN: [speed.Measured(2.0, 1, 0.001)]}
    predicted = {
        speed.PLAIN: (24 * speed.GIB, 1.0),
        "lean": (int(lean * speed.GIB), 1.0),
        speed.TOGETHER: (int(lean * speed.GIB), 1.0),
    }
    remarks = speed.remarks_on(found, predicted, "About", "cpu")

    assert f"(predicted), {word};" in remarks[1]
