"""The index of a split: skipped images, what is refused, and when it is used again."""

import json
import os

import cv2
import numpy as np
import pytest
from memplan_models.yolo_data.dataset import read_description
from memplan_models.yolo_data.decode import decode, load_resized
from memplan_models.yolo_data.scan import scan_split
from PIL import Image

from memplan.errors import BadInputError


@pytest.fixture(autouse=True)
def _user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Three labelled images of 40 x 20 pixels, used for training and validation."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (20, 40, 3), np.uint8)
        cv2.imwrite(str(root / "images" / f"{name}.jpg"), pixels)
        (root / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [x, y]\n")
    return root


def _scan(root):
    return scan_split(read_description(root / "data.yaml"), "train")


def _index(root):
    (file,) = root.glob("memplan-index-train-*.json")
    return file


def test_images_come_with_size_and_labels(root):
    """Each image has its height, width and float32 rows."""
    split = _scan(root)

    assert [(20, 40)] * 3 == [(image.height, image.width) for image in split.images]
    assert [[1, 0.5, 0.5, 0.5, 0.5]] == split.images[0].labels.tolist()
    assert () == split.warnings


def test_orientation_is_applied_to_the_size(root):
    """An image that EXIF turns by a quarter has height and width exchanged."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(root / "images" / "a.jpg", exif=exif)

    assert (40, 20) == (_scan(root).images[0].height, _scan(root).images[0].width)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_damaged_image_is_skipped_and_counted(root, keep):
    """An empty, cut or garbled file is left out with one warning that names it."""
    file = root / "images" / "b.jpg"
    file.write_bytes(file.read_bytes()[:keep])

    split = _scan(root)

    assert ["a.jpg", "c.jpg"] == [image.path.name for image in split.images]
    assert 1 == len(split.warnings)
    assert split.warnings[0].startswith("1 images in 'train'")
    assert "b.jpg" in split.warnings[0]


def test_a_tiny_image_is_skipped(root):
    """An image below 10 pixels is no training image."""
    cv2.imwrite(str(root / "images" / "b.jpg"), np.zeros((5, 40, 3), np.uint8))

    assert "40 x 5 pixels" in _scan(root).warnings[0]


def test_only_damaged_images_are_an_error(root):
    """With no usable image the message gives the first reason."""
    for file in (root / "images").iterdir():
        file.write_bytes(b"not an image")

    with pytest.raises(BadInputError, match="None of the 3 images for 'train' can be used"):
        _scan(root)


def test_images_without_any_label_are_an_error(root):
    """With no object at all the message says where labels are looked for."""
    for file in (root / "labels").iterdir():
        file.unlink()

    with pytest.raises(BadInputError, match="0 label files exist") as caught:
        _scan(root)

    assert str(root / "labels" / "a.txt") in str(caught.value)


def test_an_image_without_a_label_file_is_background(root):
    """A missing label file among others means an image with no object."""
    (root / "labels" / "a.txt").unlink()

    assert [0, 1, 1] == [len(image.labels) for image in _scan(root).images]


def test_repeated_rows_are_told(root):
    """Duplicates and boxes of no area are removed with a counted warning each."""
    (root / "labels" / "a.txt").write_text("1 .5 .5 .5 .5\n1 .5 .5 .5 .5\n0 .5 .5 0 .5\n")

    split = _scan(root)

    assert 1 == len(split.images[0].labels)
    assert "1 repeated label rows" in split.warnings[0]
    assert "1 label rows" in split.warnings[1]


def test_the_index_is_json_with_a_schema(root):
    """The index is a JSON file beside the data and names its schema."""
    _scan(root)

    assert "memplan.yolo_index/2" == json.loads(_index(root).read_text())["schema"]


def test_unchanged_files_are_taken_from_the_index(root):
    """A file whose size and time are as indexed is not read again."""
    first = _scan(root)
    file = root / "images" / "a.jpg"
    status = file.stat()
    file.write_bytes(b"\0" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert len(first.images) == len(_scan(root).images)


def test_a_changed_label_is_read_again(root):
    """A newer label file replaces its index entry."""
    _scan(root)
    (root / "labels" / "b.txt").write_text("0 0.5 0.5 0.25 0.25\n")

    assert [[0, 0.5, 0.5, 0.25, 0.25]] == _scan(root).images[1].labels.tolist()


def test_a_removed_label_is_noticed(root):
    """A label file that is gone leaves its image as background."""
    _scan(root)
    (root / "labels" / "b.txt").unlink()

    assert 0 == len(_scan(root).images[1].labels)


def test_fewer_classes_are_checked_against_indexed_rows(root):
    """When data.yaml loses a class, the indexed row at fault is told with its line."""
    _scan(root)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [x]\n")

    with pytest.raises(BadInputError, match=r"a\.txt:1 has class 1"):
        _scan(root)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "memplan.yolo_index/1", "images": {}}'])
def test_a_damaged_or_older_index_is_made_anew(root, text):
    """An index that cannot be used is replaced."""
    _scan(root)
    _index(root).write_text(text)

    assert 3 == len(_scan(root).images)
    assert 3 == len(json.loads(_index(root).read_text())["images"])


def test_the_user_cache_takes_the_index_when_the_data_cannot(root, tmp_path):
    """Where the index cannot be written beside the data, it goes to the user's cache."""
    _scan(root)
    blocked = _index(root)
    blocked.unlink()
    blocked.mkdir()

    _scan(root)

    assert (tmp_path / "cache" / "memplan" / blocked.name).is_file()
    assert [] == [file.name for file in root.iterdir() if file.name.startswith(blocked.name + ".")]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_every_image_format_is_measured(root, suffix):
    """A PNG, whose check uses the file up, has its size read like any other; so has the rest."""
    for path in (root / "images").iterdir():
        pixels = cv2.imread(str(path))
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), pixels)
    split = _scan(root)

    assert [(20, 40)] * 3 == [(image.height, image.width) for image in split.images]
    assert () == split.warnings


def test_a_damaged_png_is_skipped(root):
    """One whose data does not fit its checksum is warned of and left out."""
    path = root / "images" / "a.png"
    cv2.imwrite(str(path), np.zeros((20, 40, 3), np.uint8))
    (root / "labels" / "a.txt").touch()
    (root / "images" / "a.jpg").unlink()
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)
    split = _scan(root)

    assert 2 == len(split.images)
    assert "a.png" in split.warnings[0]


def test_bad_rows_are_skipped_and_counted(root):
    """Malformed rows go with one warning that names the first; other rows stay."""
    (root / "labels" / "a.txt").write_text("1 .5 .5 .5 .5\n1 .5 .5\n1 2 .5 .5 .5\n")
    split = _scan(root)

    assert 1 == len(split.images[0].labels)
    assert split.warnings[0].startswith("2 label rows in 'train'")
    assert "a.txt:2 has 3 columns" in split.warnings[0]


def test_bad_rows_are_remembered(root):
    """A scan that is answered from the index warns as the first did."""
    (root / "labels" / "a.txt").write_text("1 .5 .5 .5 .5\n1 .5 .5\n")

    assert _scan(root).warnings == _scan(root).warnings


def test_only_bad_rows_are_an_error(root):
    """Labels in pixels everywhere are told with the first row, not with where labels should be."""
    for file in (root / "labels").iterdir():
        file.write_text("1 20 10 20 10\n")

    with pytest.raises(BadInputError, match=r"3 rows are no objects; the first: .*outside 0 to 1"):
        _scan(root)


def test_an_unreadable_label_file_leaves_its_image_out(root):
    """Bytes instead of text make the image unusable, counted with the reason."""
    (root / "labels" / "b.txt").write_bytes(b"\xff\xfe\x00")

    split = _scan(root)
    assert ["a.jpg", "c.jpg"] == [image.path.name for image in split.images]
    assert "b.txt cannot be read as labels" in split.warnings[0]


def test_images_without_labels_are_counted(root):
    """How many images count as background is said."""
    (root / "labels" / "a.txt").unlink()

    assert "1 images in 'train'" in _scan(root).warnings[0]
    assert "count as background" in _scan(root).warnings[0]


def test_a_missing_label_directory_is_told(root):
    """Without any label file the message says where they are looked for."""
    (root / "labels").rename(root / "annotations")

    with pytest.raises(BadInputError, match=r"0 label files exist.*labels/a\.txt"):
        _scan(root)


def test_an_image_named_twice_counts_once(root):
    """A list file that repeats an image is told, and the image is in the split once."""
    (root / "list.txt").write_text("images/a.jpg\nimages/b.jpg\nimages/a.jpg\n")
    (root / "data.yaml").write_text("train: list.txt\nval: images\nnames: [x, y]\n")
    split = _scan(root)

    assert ["a.jpg", "b.jpg"] == [image.path.name for image in split.images]
    assert "1 repeated images" in split.warnings[0]


def test_images_that_share_a_label_file_are_told(root):
    """Two images of one stem have the same labels, which is rarely meant."""
    cv2.imwrite(str(root / "images" / "a.png"), np.zeros((20, 40, 3), np.uint8))

    assert "1 images in 'train'" in _scan(root).warnings[0]
    assert "label file of another" in _scan(root).warnings[0]


def test_polygons_come_back_from_the_index(root):
    """Points are kept to float32, one array a row, empty for a box."""
    (root / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n1 .1 .1 .9 .1 .5 .7\n")
    first, second = _scan(root), _scan(root)

    assert 1 == second.num_polygons
    for image in (first.images[0], second.images[0]):
        assert [0, 3] == [len(points) for points in image.polygons]
        assert np.array_equal(np.float32([[0.1, 0.1], [0.9, 0.1], [0.5, 0.7]]), image.polygons[1])


def test_names_beyond_ascii_are_read(root):
    """Images and labels may be called anything, and come back from the index."""
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (root / folder / f"a{suffix}").rename(root / folder / f"\u732b \u00e9\U0001f408{suffix}")
    split = _scan(root)

    assert 3 == len(_scan(root).images) == len(split.images)
    assert (20, 40, 3) == decode(split.images[-1]).shape
    assert () == split.warnings


@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [
        (".png", np.full((20, 40), 40_000, np.uint16)),
        (".png", np.full((20, 40, 3), 40_000, np.uint16)),
        (".tif", np.full((20, 40), 40_000, np.uint16)),
        (".png", np.full((20, 40, 4), 156, np.uint8)),
        (".webp", np.full((20, 40, 4), 156, np.uint8)),
        (".jpg", np.full((20, 40), 156, np.uint8)),
        (".bmp", np.full((20, 40), 156, np.uint8)),
        (".tif", np.full((20, 40, 3), 156, np.uint8)),
    ],
)
def test_every_depth_and_number_of_channels_becomes_colour(root, suffix, pixels):
    """Grey, transparent and 16-bit images are decoded as three channels of 8 bits."""
    (root / "images" / "a.jpg").unlink()
    cv2.imwrite(str(root / "images" / f"a{suffix}"), pixels)
    split = _scan(root)
    decoded = decode(split.images[0])

    assert () == split.warnings
    assert ((20, 40, 3), np.uint8) == (decoded.shape, decoded.dtype)
    assert np.abs(decoded.astype(int) - 156).max() <= 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_holds_for_scan_and_decoder_alike(root, suffix):
    """What EXIF turns is turned in the pixels too, in every format that can say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "a.jpg").unlink()
    Image.new("RGB", (40, 20)).save(root / "images" / f"a{suffix}", exif=exif)
    image = _scan(root).images[0]

    assert (40, 20) == (image.height, image.width) == decode(image).shape[:2]


def test_samples_of_32_bits_are_skipped_with_the_reason(root):
    """A TIFF of floats, which the decoder cannot read, is found when scanning."""
    (root / "images" / "a.jpg").unlink()
    Image.fromarray(np.zeros((20, 40), np.float32)).save(root / "images" / "a.tif")

    assert "32 bits a sample" in _scan(root).warnings[0]


def test_large_photographs_are_decoded_smaller(root):
    """A JPEG twice as large as needed is decoded at half its size, to nearly the same pixels."""
    ys, xs = np.mgrid[:400, :600]
    picture = np.stack([xs // 3, ys // 2, (xs + ys) // 5], axis=-1).astype(np.uint8)
    cv2.imwrite(str(root / "images" / "a.jpg"), picture)
    image = _scan(root).images[0]

    assert (200, 300, 3) == decode(image, 300).shape
    assert (400, 600, 3) == decode(image, 301).shape
    exact = load_resized(image, 200, "area").astype(int)
    assert np.abs(exact - load_resized(image, 200, "decoder")).max() <= 3


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
    b'tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def test_an_orientation_that_stands_in_xmp_alone_is_not_applied(root):
    """Check and load agree on it, as OpenCV and the official tool do: it is left out."""
    file = root / "images" / "a.jpg"
    Image.new("RGB", (40, 20)).save(file, xmp=XMP)

    image = _scan(root).images[0]

    assert (20, 40) == (image.height, image.width) == decode(image).shape[:2]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_every_orientation_of_every_kind_is_loaded_as_it_was_checked(root, suffix, turn):
    """Whatever a file says of its orientation, what is loaded has the size that was checked."""
    exif = Image.Exif()
    exif[0x0112] = turn
    (root / "images" / "a.jpg").unlink()
    Image.new("RGB", (40, 20)).save(root / "images" / f"a{suffix}", exif=exif)

    image = _scan(root).images[0]

    assert (image.height, image.width) == decode(image).shape[:2]


def test_shrunk_training_images_are_sharper_than_shrunk_validation_images(root):
    """Linear interpolation keeps more contrast than the mean of all pixels, as officially."""
    pixels = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
    cv2.imwrite(str(root / "images" / "a.png"), pixels)
    (root / "images" / "a.jpg").unlink()
    image = _scan(root).images[0]

    linear, area = (load_resized(image, 150, kind) for kind in ("linear", "area"))

    assert (100, 150) == linear.shape[:2] == area.shape[:2]
    assert (cv2.resize(pixels, (150, 100), interpolation=cv2.INTER_LINEAR) == linear).all()
    assert (cv2.resize(pixels, (150, 100), interpolation=cv2.INTER_AREA) == area).all()
    assert linear.std() > 2 * area.std()


def test_empty_labels_are_told(root):
    """Where every label file is empty, that is said, and not where labels are looked for."""
    for file in (root / "labels").iterdir():
        file.write_text("")

    with pytest.raises(BadInputError, match="All labels are empty; one is"):
        _scan(root)
