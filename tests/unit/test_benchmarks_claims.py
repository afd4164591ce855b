"""The claims page computes its figures; none is written down."""

from benchmarks import claims
from memplan.advise import Question

STEP = claims.Step("Toy", Question(workload="yolov9-t", arguments={"image_size": 64}, gpus=("t4",)))


def test_a_verdict_follows_from_what_the_steps_find(monkeypatch):
    """All bear it out: holds; another reading does, or they disagree: depends; else it does not."""

    def check(*findings):
        found = iter(findings)
        monkeypatch.setattr(claims, "CHECKS", (("A claim", lambda _: next(found), "Because"),))
        return claims.check([STEP] * len(findings))[0].verdict

    yes, no = claims.Finding("yes", holds=True), claims.Finding("no", holds=False)
    other = claims.Finding("no, but", holds=False, holds_otherwise=True)

    assert "holds" == check(yes, yes)
    assert "depends" == check(yes, no)
    assert "depends" == check(other, other)
    assert "does not hold" == check(no, other)


def test_inputs_are_counted_from_the_recording(monkeypatch):
    """At 64 px an image is 12,288 bytes as uint8 and four times that as float32."""
    monkeypatch.setattr(claims, "IMAGE_SIZE", 64)
    monkeypatch.setattr(claims, "BATCH", 4)
    monkeypatch.setattr(claims, "SMALL_BATCH", 2)

    text = claims.inputs(STEP).text

    stated = "0.01 MB and 0.05 MB an image, 0.06 MB together; "
    assert text == stated + "autocast keeps another 0.02 MB for backward (recorded)"
