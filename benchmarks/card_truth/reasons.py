"""Why predictions miss: the mechanism, or that it is not known."""

from __future__ import annotations

import re

from benchmarks.card_truth import cards, studies, ultralytics
from benchmarks.card_truth.row import Row

UNEXPLAINED = "unexplained"
_AMP_CHECK = (
    "Ultralytics first runs another network to check AMP, and what the allocator cached of it stays"
)
_OTHER_CUDNN = "another cuDNN's workspaces: under 9.10.2"
# By table, and by what the case begins with; the first that fits holds.
_REASONS = (
    (
        cards.PLAIN,
        "efficientnet_b0",
        "cuDNN 9.19 plans a weight gradient over maps of one pixel as a product an image, and "
        "holds a gradient for each; under 9.10.2, -2 to +5 %",
    ),
    (cards.PLAIN, "vgg16", f"{_OTHER_CUDNN}, +3 %"),
    (
        cards.PLAIN,
        "resnet18|resnet34",
        f"in part another cuDNN (under 9.10.2, -5 %), of the rest {UNEXPLAINED}: 40 MiB",
    ),
    (
        cards.TIMM,
        "vgg16",
        "the trial of plans at each convolution's first call, 6.1 GiB here, is not replayed",
    ),
    (
        studies.XMEM,
        "VGG",
        "likely another cuDNN's workspaces: 9.1.0 is not at hand, and on the A100 too VGG takes "
        "less than 9.19 says",
    ),
    (studies.XMEM, "MnasNet", "the study's records of MnasNet disagree with each other"),
    (
        studies.FIRST_EPOCH,
        "yolov9-c",
        "two public logs at this batch, torch 2.3 and 2.8, differ by 4 %",
    ),
    (
        studies.WHOLE_LIFE,
        "yolov9-c",
        "two public logs at this batch, torch 2.3 and 2.8, differ by 7 %",
    ),
    (ultralytics.LOGS, "yolov8n-cls", f"{_AMP_CHECK}; how much that is was not worked out"),
    (
        ultralytics.LOGS,
        r".*\(8\.1\.0\)",
        f"{_AMP_CHECK}; objects of the fullest image are not known, but 160 would take 10 % more; "
        f"most of it {UNEXPLAINED}",
    ),
    (
        ultralytics.LOGS,
        "yolov8n",
        f"{_AMP_CHECK}; objects of the fullest image are not known",
    ),
)


def reason(row: Row) -> str:
    """Return why a row misses, as a phrase."""
    for kind, begins, text in _REASONS:
        if row.kind == kind and re.match(begins, row.case):
            return text
    return UNEXPLAINED
