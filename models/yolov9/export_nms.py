"""Suppression inside an ONNX file, by ONNX's own operator, and the check that it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from memplan.errors import BadInputError

if TYPE_CHECKING:
    from torch import Tensor

    from memplan.workload import ExportOptions

OUTPUT = "detections"
_RAW = "predictions"
_ALLOWED_SHARE = 0.02  # of detections, that rounding at a threshold may add or take


def add_suppression(model: Any, options: ExportOptions) -> None:
    """Replace the raw output `[B, 4 + nc, A]` by detections `[K, 7]`, in place.

    A row is image, left, top, right, bottom, score, class; by image, then class, then score.

    Args:
        model: an `onnx.ModelProto` whose only output is `OUTPUT`.
        options: `confidence`, `iou` and `max_detections`, which is of a class in an image.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for node in graph.node:
        node.output[:] = [_RAW if name == OUTPUT else name for name in node.output]
    values = {
        "nms_0": [0], "nms_4": [4], "nms_end": [2**31 - 1], "nms_axis": [1], "nms_most":
        [options.max_detections], "nms_batch_box": [0, 2], "nms_batch": [0], "nms_class": [1],
    }  # fmt: skip
    numbers = {"nms_iou": [options.iou], "nms_least": [options.confidence], "nms_half": [0.5]}
    graph.initializer.extend(
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in values.items()]
        + [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in numbers.items()]
    )

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    first = add("Slice", [_RAW, "nms_0", "nms_4", "nms_axis"], "nms_boxes_first")
    boxes = add("Transpose", [first], "nms_boxes", perm=[0, 2, 1])
    scores = add("Slice", [_RAW, "nms_4", "nms_end", "nms_axis"], "nms_scores")
    kept = add(
        "NonMaxSuppression",
        [boxes, scores, "nms_most", "nms_iou", "nms_least"],
        "nms_kept",
        center_point_box=1,
    )
    places = add("Gather", [kept, "nms_batch_box"], "nms_places", axis=1)
    box = add("GatherND", [boxes, places], "nms_box")
    score = add("Unsqueeze", [add("GatherND", [scores, kept], "nms_score"), "nms_axis"], "nms_s")
    graph.node.append(helper.make_node("Split", [box], ["nms_xy", "nms_wh"], axis=1))
    half = add("Mul", ["nms_wh", "nms_half"], "nms_half_size")
    corners = [add("Sub", ["nms_xy", half], "nms_low"), add("Add", ["nms_xy", half], "nms_high")]
    image, label = (
        add(
            "Cast",
            [add("Gather", [kept, f"nms_{name}"], f"nms_{name}_number", axis=1)],
            f"nms_{name}_float",
            to=TensorProto.FLOAT,
        )
        for name in ("batch", "class")
    )
    add("Concat", [image, *corners, score, label], OUTPUT, axis=1)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["found", 7]))


def check_suppression(
    rows: Tensor, raw: Tensor, expected: list[Tensor], allowed: tuple[float, float]
) -> tuple[float, float]:
    """Return how far detections are from the trained network's, boxes in pixels and scores.

    Args:
        rows: `[K, 7]`, of the file.
        raw: the trained network's predictions of the same images, `[B, 4 + nc, A]`.
        expected: what memplan's own suppression leaves of those, `[k, 6]` an image.
        allowed: largest differences of boxes and of scores.

    Raises:
        BadInputError: the file finds more or fewer, or what the network did not predict.
    """
    wanted = sum(map(len, expected))
    if abs(len(rows) - wanted) > max(2, _ALLOWED_SHARE * wanted):
        raise BadInputError(
            f"The file finds {len(rows)} objects where the network finds {wanted}. It is not kept."
        )
    furthest = (0.0, 0.0)
    for image, left, top, right, bottom, score, label in rows.tolist():
        box = raw.new_tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])[
            :, None
        ]
        candidates = raw[int(image)]
        gaps = (candidates[:4] - box).abs().amax(0)
        other = (candidates[4 + int(label)] - score).abs()
        # Of like boxes, the one with that score.
        place = int((gaps / allowed[0] + other / allowed[1]).argmin())
        furthest = max(furthest[0], float(gaps[place])), max(furthest[1], float(other[place]))
    return furthest
