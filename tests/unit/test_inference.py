"""Trained networks evaluated and run on images and videos, whatever kind of file they are in."""

import csv
import json
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch
from memplan_models import yolov9
from memplan_models.detection_metrics.nms import non_max_suppression
from memplan_models.detection_metrics.written import coco_results
from memplan_models.yolo_data.sources import find_files, read_pictures
from memplan_models.yolov9.detector import load_detector
from memplan_models.yolov9.export_nms import check_suppression
from memplan_models.yolov9.workload import YoloV9

import memplan
from memplan.errors import BadInputError, UsageError
from memplan.inference import DetectOptions, ValidateOptions
from memplan.workload import DataOptions, ExportOptions

SIZE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network whose class 0 is sure of boxes larger than images, so that it finds full images."""
    torch.manual_seed(0)
    net = yolov9.build("yolov9-t", 2)
    for name, value in net.state_dict().items():
        if name.endswith(".2.bias") and {"cv3", "cv5"} & set(name.split(".")):
            value.copy_(torch.tensor([2.0, -4.0]))
        if name.endswith(".2.bias") and {"cv2", "cv4"} & set(name.split(".")):
            value.copy_((torch.arange(64) % 16 >= 14) * 20.0)
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    names = ["thing", "other"]
    content = {"model": net.state_dict(), "description": net.yaml, "class_names": names}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images, each an object of its full size; the third is of the other class."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(48, 64), (64, 64), (64, 32), (30, 60)]):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{number}.png"), pixels)
        (root / "labels" / f"{number}.txt").write_text(f"{int(number == 2)} 0.5 0.5 1 1\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [thing, other]\n")
    return root / "data.yaml"


def _images(count):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _validated(weights, data, folder, **options):
    folder.mkdir()
    given = {"image_size": SIZE, "batch_size": 2, "draws": False, **options}
    given = ValidateOptions(weights=weights, data=data, folder=folder, **given)
    lines = list(YoloV9("yolov9-t").validate(given))
    with (folder / "per_class.csv").open() as file:
        rows = {row.pop("class"): row for row in csv.DictReader(file)}
    return lines, rows


def test_a_checkpoint_scores_what_training_would_report(weights, data, tmp_path):
    """The same images, rectangles and suppression as validation in training: the same metrics."""
    workload = YoloV9("yolov9-t", num_classes=2, image_size=SIZE)
    net = workload.build_model()
    workload.load_weights(net, weights)
    opened = workload.open_data(DataOptions(path=data, image_size=SIZE, num_workers=0))
    evaluator = opened.evaluator()
    for batch in opened.validation_batches(micro_batch_size=2):
        with torch.no_grad():
            evaluator.update(workload.predict(net.eval(), workload.prepare(batch)), batch)
    expected = evaluator.compute()

    _, rows = _validated(weights, data, tmp_path / "val")

    assert 0 < expected["mAP50"]
    for name in ("precision", "recall", "mAP50", "mAP50-95"):
        assert expected[name] == pytest.approx(float(rows["all"][name]), abs=1e-3)


def test_python_has_the_scores_that_the_command_prints(weights, data, tmp_path):
    """The function returns the table's figures, by class as well, and says the same lines."""
    lines = []
    found = memplan.val(
        weights, data, image_size=SIZE - 1, batch_size=2, draws=False, device="cpu",
        num_workers=0, project=tmp_path, say=lines.append,
    )  # fmt: skip
    expected, rows = _validated(weights, data, tmp_path / "val")

    assert "--img 63 is no multiple of 32: 64 is taken." == lines[0]
    assert [line for line in expected if " ms " not in line] == [
        line for line in lines[1:] if " ms " not in line
    ]
    assert float(rows["all"]["mAP50"]) == pytest.approx(found.scores["mAP50"], abs=1e-5)
    assert float(rows["other"]["recall"]) == pytest.approx(
        found.classes["other"]["recall"], abs=1e-5
    )
    assert (4, {"inference", "NMS"}) == (found.num_images, set(found.milliseconds))


def test_python_has_the_boxes_that_the_command_writes(weights, data, tmp_path):
    """Each image's boxes come in its pixels, as in its label file."""
    found = memplan.predict(
        weights, data.parent / "images", image_size=SIZE, device="cpu", saves_images=False,
        saves_txt=True, saves_confidence=True, project=tmp_path,
    )  # fmt: skip
    first = found[0]
    written = np.loadtxt(tmp_path / "exp" / "labels" / "0.txt", ndmin=2)

    assert ["0.png", "1.png", "2.png", "3.png"] == [one.path.name for one in found]
    assert written[:, 0] == pytest.approx(first.boxes[:, 5])
    assert written[:, 5] == pytest.approx(first.boxes[:, 4], abs=1e-4)
    assert (written[:, 3] * 64) == pytest.approx(first.boxes[:, 2] - first.boxes[:, 0], abs=0.01)


def test_python_exports_beside_the_weights_and_overwrites_nothing(weights, tmp_path):
    """The file's name is the weights' with the format's suffix; one that is there is kept."""
    mine = tmp_path / "mine.pt"
    mine.write_bytes(weights.read_bytes())

    assert tmp_path / "mine-converted.pt" == memplan.export(mine, format="pt", image_size=SIZE)
    with pytest.raises(BadInputError, match="exists"):
        memplan.export(mine, format="pt", image_size=SIZE)
    with pytest.raises(UsageError, match="is the weights file itself"):
        memplan.export(mine, mine, format="pt")


def test_every_kind_of_file_predicts_alike(weights, data, tmp_path):
    """A checkpoint, an exported `.pt` and an ONNX file of one image at a fixed size agree."""
    files = [weights]
    for kind in ("pt", "onnx"):
        output = tmp_path / f"exported.{kind}"
        options = ExportOptions(weights=weights, output=output, image_size=SIZE, format=kind)
        YoloV9("yolov9-t").export(options)
        files.append(output)

    found = [
        load_detector(ValidateOptions(weights=file, folder=tmp_path, image_size=SIZE))(
            (_images(2) * 255).byte()
        )
        for file in files
    ]
    _, rows = _validated(files[-1], data, tmp_path / "val")

    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.01)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0.01)
    assert 0 < float(rows["all"]["mAP50"])


def test_openvino_predicts_alike_for_any_number_of_images(weights, tmp_path):
    """The file, or the folder that readers of YOLO files know, with the names of the classes."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    output = tmp_path / "net_openvino_model" / "net.xml"
    output.parent.mkdir()
    YoloV9("yolov9-t").export(
        ExportOptions(weights=weights, output=output, image_size=SIZE, format="openvino",
                      dynamic_batch=True)
    )  # fmt: skip
    pixels = (_images(3) * 255).byte()

    expected, *found = [
        load_detector(ValidateOptions(weights=file, folder=tmp_path, image_size=SIZE))
        for file in (weights, output, output.parent)
    ]

    for detector in found:
        torch.testing.assert_close(expected(pixels), detector(pixels), rtol=0, atol=0.01)
        assert (("thing", "other"), SIZE) == (detector.class_names, detector.fixed_size)


@pytest.mark.parametrize("kind", ["openvino", "engine"])
def test_a_format_whose_package_is_absent_is_refused_with_its_command(
    kind, weights, tmp_path, monkeypatch
):
    """Before any work is done."""
    for package in ("openvino", "tensorrt"):
        monkeypatch.setitem(sys.modules, package, None)
    options = ExportOptions(weights=weights, output=tmp_path / "a.xml", format=kind)

    with pytest.raises(
        BadInputError, match=r"which is not installed\. Install it with: pip install"
    ):
        YoloV9("yolov9-t").export(options)


def test_a_file_for_other_programs_is_refused(tmp_path):
    """TorchScript and engines are programs; they are written here and run elsewhere."""
    path = tmp_path / "net.torchscript"
    path.write_bytes(b"")

    with pytest.raises(BadInputError, match="is for other programs to run"):
        load_detector(ValidateOptions(weights=path, folder=tmp_path))


def test_results_are_written_for_other_tools(weights, data, tmp_path):
    """COCO's result file and label files hold the detections in the images' own pixels."""
    folder = tmp_path / "val"
    lines, _ = _validated(weights, data, folder, saves_json=True, saves_txt=True)

    rows = json.loads((folder / "net_predictions.json").read_text())
    assert {0, 1, 2, 3} == {row["image_id"] for row in rows}
    assert all(row["bbox"][0] >= 0 and row["bbox"][2] <= 64 for row in rows)
    assert 5 == len((folder / "labels" / "0.txt").read_text().splitlines()[0].split())
    assert any("ms inference" in line for line in lines)


def test_all_classes_may_be_taken_for_one(weights, data, tmp_path):
    """With one class, what was of the other is found as well."""
    _, rows = _validated(weights, data, tmp_path / "val", single_class=True)

    assert {"all", "object"} == set(rows)
    assert "4" == rows["object"]["instances"]


def test_images_with_few_objects_may_be_left_out(weights, data, tmp_path):
    """As in training; that none is left is said."""
    with pytest.raises(BadInputError, match="No image of val has 2 objects"):
        _validated(weights, data, tmp_path / "val", min_items=2)


def test_weights_of_other_classes_are_refused(weights, data, tmp_path):
    """The message says both numbers."""
    other = tmp_path / "data.yaml"
    other.write_text(f"path: {data.parent}\ntrain: images\nval: images\nnames: [a, b, c]\n")

    with pytest.raises(BadInputError, match="names 3 classes, but the weights are of 2"):
        _validated(weights, other, tmp_path / "val")


def _detected(weights, source, folder, **options):
    folder.mkdir()
    given = {"image_size": SIZE, "confidence": 0.25, "iou": 0.45, **options}
    options = DetectOptions(weights=weights, source=str(source), folder=folder, **given)
    return list(YoloV9("yolov9-t").detect(options))


def test_images_and_videos_are_drawn_and_their_boxes_written(weights, data, tmp_path):
    """A folder's images and every second frame of its video; each found thing a row."""
    source = tmp_path / "source"
    source.mkdir()
    pixels = cv2.imread(str(data.parent / "images" / "0.png"))
    cv2.imwrite(str(source / "a.png"), pixels)
    video = cv2.VideoWriter(str(source / "b.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(5):
        video.write(pixels)
    video.release()
    folder = tmp_path / "out"

    lines = _detected(weights, source, folder, saves_txt=True, video_stride=2)

    assert 3 == sum("frame" in line for line in lines)
    assert ["a.txt", "b_0.txt", "b_2.txt", "b_4.txt"] == sorted(
        path.name for path in (folder / "labels").iterdir()
    )
    label, *box = map(float, (folder / "labels" / "a.txt").read_text().splitlines()[0].split())
    assert (0, [0.5, 0.5, 1, 1]) == (label, pytest.approx(box, abs=0.05))
    assert (pixels != cv2.imread(str(folder / "a.png"))).any()
    assert 3 == len(list(read_pictures(folder / "b.mp4")))


def test_found_objects_are_cut_out(weights, data, tmp_path):
    """Each as a file in its class's folder."""
    image = data.parent / "images" / "0.png"
    folder = tmp_path / "out"

    _detected(weights, image, folder, saves_crops=True, saves_images=False)

    crops = sorted((folder / "crops" / "thing").iterdir())
    assert "0.jpg" == crops[0].name
    assert (48, 64) == cv2.imread(str(crops[0])).shape[:2]


def test_only_wanted_classes_are_found(weights, data, tmp_path):
    """`classes` leaves out the others, and one that there is not is refused."""
    image = data.parent / "images" / "0.png"

    [_, line, *_] = _detected(weights, image, tmp_path / "a", classes=(1,), saves_images=False)

    assert ": nothing (" in line
    assert [] == list((tmp_path / "a").iterdir())
    with pytest.raises(UsageError, match="--classes 7 is not one of 0 to 1"):
        _detected(weights, image, tmp_path / "b", classes=(7,))


def test_sources_are_files_folders_patterns_and_lists(data, tmp_path):
    """Each names the same images in the same order."""
    images = data.parent / "images"
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{images / f'{number}.png'}\n" for number in range(4)))

    found = [find_files(str(source)) for source in (images, images / "*.png", listed)]

    assert [[f"{number}.png" for number in range(4)]] * 3 == [[p.name for p in f] for f in found]


@pytest.mark.parametrize(
    ("source", "message"),
    [("0", "is a camera"), ("rtsp://host/a", "is a camera"), ("gone.jpg", "gone.jpg is no file"),
     ("gone*.jpg", "no image and no video")],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_refused(source, message):
    """Cameras, streams, and what is not there."""
    with pytest.raises(BadInputError, match=message):
        find_files(source)


def test_coco_numbers_its_classes_with_gaps():
    """Class 11 (stop sign) is COCO's 13, the last its 90; other data sets keep their numbers."""
    rows = np.array([[1.0, 2, 4, 8, 0.5, 11], [0, 0, 1, 1, 0.25, 79]])

    found = coco_results("000042", rows, is_coco=True)

    assert [13, 90] == [row["category_id"] for row in found]
    assert {"image_id": 42, "category_id": 11, "bbox": [1, 2, 3, 6], "score": 0.5} == (
        coco_results("000042", rows, is_coco=False)[0]
    )


def test_suppression_inside_an_onnx_file_is_ours(weights, tmp_path):
    """The file's rows are what the raw file's output leaves of memplan's own suppression."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = {}
    for nms in (False, True):
        output = tmp_path / f"{nms}.onnx"
        YoloV9("yolov9-t").export(
            ExportOptions(weights=weights, output=output, image_size=SIZE, nms=nms,
                          dynamic_batch=True)
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        found[nms] = torch.from_numpy(session.run(None, {"images": _images(2).numpy()})[0])

    kept = non_max_suppression(found[False], confidence=0.25, iou=0.45, max_detections=600)
    expected = [[i, *row] for i, rows in enumerate(kept) for row in rows.tolist()]
    assert expected
    torch.testing.assert_close(
        torch.tensor(sorted(expected)),
        torch.tensor(sorted(found[True].tolist())),
        rtol=0,
        atol=1e-3,
    )


def test_detections_that_the_network_does_not_make_are_not_kept():
    """A file that finds more than the network is refused."""
    raw = torch.tensor([[10.0, 10, 4, 4, 0.9]]).T[None]
    rows = torch.tensor([[0.0, 8, 8, 12, 12, 0.9, 0]])

    assert (0.0, 0.0) == pytest.approx(
        check_suppression(rows, raw, non_max_suppression(raw), (0.05, 1e-3)), abs=1e-6
    )
    with pytest.raises(BadInputError, match="finds 4 objects where the network finds 1"):
        check_suppression(rows.repeat(4, 1), raw, non_max_suppression(raw), (0.05, 1e-3))


def test_a_torchscript_file_gives_what_the_checkpoint_gives(weights, tmp_path):
    """Also on images that it was not traced with."""
    output = tmp_path / "net.torchscript"
    YoloV9("yolov9-t").export(
        ExportOptions(weights=weights, output=output, image_size=SIZE, format="torchscript")
    )
    options = ValidateOptions(weights=weights, folder=tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.load(str(output))

    expected = load_detector(options).run(_images(1))
    torch.testing.assert_close(expected, traced(_images(1)), rtol=1e-4, atol=1e-3)
