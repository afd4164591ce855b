"""The sample set: real handwritten digits placed on photographs and textures, in YOLO layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from memplan.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Image = npt.NDArray[np.uint8]

SAMPLE_IMAGE_SIZE = 320
NUM_IMAGES = {"train": 400, "val": 60}
_SEED = 20240229
_OBJECTS = (3, 7)  # fewest and most digits asked of an image
_SIDES = (56, 140)  # pixels; half of it when trained at 160
_LARGEST_OVERLAP = 0.05  # of the smaller box
_INK = 0.25  # alpha from which a pixel counts as part of the digit
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]

_DATA_YAML = """\
# The sample set of memplan: {num_train} training and {num_val} validation images, {size} x {size}.
# Digits: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine
#   Learning Repository, doi 10.24432/C50P49, CC BY 4.0; as shipped in scikit-learn. No scan of a
#   digit is in both training and validation images.
# Backgrounds: crops of china.jpg (danielbuechele) and flower.jpg (vultilion), both CC BY 2.0, as
#   shipped in scikit-learn, scaled and dimmed; gradients and textures are computed.
path: .
train: images/train
val: images/val
nc: 10
names: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
# What `memplan train` takes where its command line says nothing else; other programs pass it over.
train_defaults:
  hyp: small-set.yaml
  optimizer: AdamW
  effective_batch: 4
"""


def write_sample(directory: Path, *, force: bool = False, outlines: bool = False) -> Path:
    """Write the sample set and return the path of its `data.yaml`.

    The same versions of NumPy, OpenCV and scikit-learn give the same bytes.

    Args:
        directory: made when missing.
        force: write into a directory that already holds files, replacing the sample's own.
        outlines: a label is the digit's outer border, a polygon, and not its box.

    Raises:
        BadInputError: the directory holds files and `force` is not given, or cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise BadInputError(f"{directory} is a file. Give a directory for the sample set.")
    if directory.is_dir() and any(directory.iterdir()) and not force:
        raise BadInputError(f"{directory} is not empty. Give another directory, or add --force.")
    try:
        for split, num_images in NUM_IMAGES.items():
            _write_split(directory, split, num_images, outlines=outlines)
        data_yaml = directory / "data.yaml"
        data_yaml.write_text(
            _DATA_YAML.format(
                num_train=NUM_IMAGES["train"], num_val=NUM_IMAGES["val"], size=SAMPLE_IMAGE_SIZE
            ),
            encoding="utf-8",
        )
    except OSError as error:
        raise BadInputError(f"The sample set cannot be written to {directory}: {error}.") from None
    return data_yaml


def sample_images(count: int, size: int) -> torch.Tensor:
    """Return images of the sample set's validation split, RGB, 0 to 1, `[count, 3, size, size]`.

    Nothing is written; these are the files' pixels before their compression.
    """
    import torch

    digits, classes = _load_digits("val")
    photographs = _load_photographs()
    images = []
    for number in range(count):
        rng = np.random.default_rng([_SEED, 1, number, 1])
        image, _ = _compose(rng, digits, classes, photographs, outlines=False)
        resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        images.append(np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(images)).float() / 255


def _write_split(directory: Path, split: str, num_images: int, *, outlines: bool) -> None:
    images, labels = directory / "images" / split, directory / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    digits, classes = _load_digits(split)
    photographs = _load_photographs()
    for number in range(num_images):
        rng = np.random.default_rng([_SEED, list(NUM_IMAGES).index(split), number, 1])
        image, rows = _compose(rng, digits, classes, photographs, outlines=outlines)
        encoded = cv2.imencode(".jpg", image, _JPEG)[1]
        (images / f"{number:04d}.jpg").write_bytes(encoded.tobytes())
        lines = [
            " ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n"
            for label, *values in rows
        ]
        (labels / f"{number:04d}.txt").write_text("".join(lines), encoding="utf-8")


def _load_digits(split: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return digits `[n, 8, 8]` from 0 to 1 with their classes; four fifths are for training."""
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    border = len(bundle.images) * 4 // 5
    part = slice(0, border) if split == "train" else slice(border, None)
    return bundle.images[part] / 16.0, bundle.target[part].astype(np.int64)


def _load_photographs() -> list[Image]:
    from sklearn.datasets import load_sample_images

    bundle: Any = load_sample_images()
    return [np.ascontiguousarray(photograph[..., ::-1]) for photograph in bundle.images]


def _compose(
    rng: np.random.Generator,
    digits: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    photographs: list[Image],
    *,
    outlines: bool,
) -> tuple[Image, list[tuple[int | float, ...]]]:
    """Return one image with its label rows: boxes, or with `outlines` polygons."""
    image = _background(rng, photographs)
    placed: list[tuple[int, int, int, int]] = []
    rows = []
    for _ in range(int(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1))):
        chosen = int(rng.integers(len(digits)))
        alpha = _render(rng, digits[chosen])
        box = _find_place(rng, alpha.shape, placed)
        if box is None:
            continue
        placed.append(box)
        _blend(rng, image, alpha, box)
        left, top, right, bottom = (side / SAMPLE_IMAGE_SIZE for side in box)
        row = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        shape = _outline(alpha, box) if outlines else row
        rows.append((int(classes[chosen]), *shape))
    return image, rows


def _outline(alpha: npt.NDArray[np.float32], box: tuple[int, int, int, int]) -> tuple[float, ...]:
    """Return the outer border of a digit's largest part, x, y, x, y, ..., normalised."""
    ink = (alpha > _INK).astype(np.uint8)
    contours = cv2.findContours(ink, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    points = max(contours, key=cv2.contourArea).reshape(-1, 2) + np.array(box[:2])
    return tuple((points / SAMPLE_IMAGE_SIZE).ravel().tolist())


def _background(rng: np.random.Generator, photographs: list[Image]) -> Image:
    """Return a photograph's crop, a gradient or a texture, a little dimmed."""
    size = SAMPLE_IMAGE_SIZE
    kind = int(rng.integers(4))
    if kind < 2:  # half of the images
        photograph = photographs[int(rng.integers(len(photographs)))]
        side = int(rng.integers(160, 401))
        top = int(rng.integers(photograph.shape[0] - side + 1))
        left = int(rng.integers(photograph.shape[1] - side + 1))
        part = photograph[top : top + side, left : left + side].astype(np.float32)
    else:  # few random colours, enlarged: 2 x 2 is a gradient, more is a texture
        cells = 2 if kind == 2 else int(rng.integers(4, 24))
        part = rng.uniform(20, 235, (cells, cells, 3)).astype(np.float32)
    pixels = np.asarray(cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR))
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    dimmed = mean + (pixels - mean) * rng.uniform(0.35, 0.8)
    return np.asarray(np.clip(dimmed, 0, 255), np.uint8)


def _render(rng: np.random.Generator, digit: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return a digit's opacity, enlarged, cropped to its ink."""
    height = int(np.exp(rng.uniform(*np.log(_SIDES))))
    width = max(round(height * rng.uniform(0.75, 1.1)), 8)
    padded = np.pad(digit.astype(np.float32), 1)
    grey = cv2.resize(padded, (width, height), interpolation=cv2.INTER_CUBIC)
    # Steeper than the bilinear grey of the 8 x 8 scan, so that strokes have edges.
    alpha = np.clip((grey - 0.3) / 0.4, 0, 1).astype(np.float32)
    rows, columns = (np.flatnonzero((alpha > _INK).any(axis=axis)) for axis in (1, 0))
    return np.asarray(alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _find_place(
    rng: np.random.Generator, shape: tuple[int, ...], placed: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom where hardly another digit is, None after 20 tries."""
    height, width = shape
    for _ in range(20):
        left = int(rng.integers(SAMPLE_IMAGE_SIZE - width + 1))
        top = int(rng.integers(SAMPLE_IMAGE_SIZE - height + 1))
        box = (left, top, left + width, top + height)
        if all(_overlap(box, other) <= _LARGEST_OVERLAP for other in placed):
            return box
    return None


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Return the intersection's share of the smaller box."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)


def _blend(
    rng: np.random.Generator,
    image: Image,
    alpha: npt.NDArray[np.float32],
    box: tuple[int, int, int, int],
) -> None:
    """Draw the digit in a colour that stands off from what is behind it."""
    left, top, right, bottom = box
    region = image[top:bottom, left:right].astype(np.float32)
    behind = float(region.mean())
    offset = rng.uniform(70, 130)
    level = behind - offset if behind > 127 else behind + offset
    colour = np.clip(level + rng.uniform(-30, 30, 3), 0, 255).astype(np.float32)
    opacity = alpha[..., None]
    image[top:bottom, left:right] = (region * (1 - opacity) + colour * opacity).astype(np.uint8)
