"""Batches: content fixed by seed, epoch and image; shapes and dtypes as agreed."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from memplan_models.yolo_data.batches import read_batches
from memplan_models.yolo_data.loader import open_yolo_data, validation_size
from memplan_models.yolo_data.sample import write_sample

from memplan.errors import BadInputError, ProcessError, UnknownNameError, UsageError
from memplan.workload import DataOptions


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample set, written once."""
    return write_sample(tmp_path_factory.mktemp("data") / "sample")


@pytest.fixture(autouse=True)
def _user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(sample, tmp_path):
    """A copy with six training and three validation images, to be damaged."""
    root = tmp_path / "small"
    for split, count in (("train", 6), ("val", 3)):
        for folder, suffix in (("images", "jpg"), ("labels", "txt")):
            (root / folder / split).mkdir(parents=True)
            for number in range(count):
                part = f"{folder}/{split}/{number:04d}.{suffix}"
                shutil.copy(sample.parent / part, root / part)
    shutil.copy(sample, root / "data.yaml")
    return root / "data.yaml"


FIRST = {"micro_batch_size": 4, "epoch": 0, "augment_fully": True}


def _open(path, **options):
    return open_yolo_data(DataOptions(path=path, image_size=64, **options))


def _train(data, micro_batch_size=4, epoch=0, augment_fully=True, **options):
    return list(
        data.training_batches(
            micro_batch_size=micro_batch_size, epoch=epoch, augment_fully=augment_fully, **options
        )
    )


def _same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(batch[key], other[key])
        for batch, other in zip(batches, others, strict=True)
        for key in batch
    )


def test_validation_size_is_the_official_one():
    """Half a stride of padding makes 672 of 640 and 192 of 160."""
    assert [672, 192] == [validation_size(640), validation_size(160)]


def test_training_batches_have_the_agreed_shapes(small):
    """Images are uint8 squares; targets are padded with class -1; the last batch is smaller."""
    data = _open(small)
    batches = _train(data)

    assert [(4, 3, 64, 64), (2, 3, 64, 64)] == [tuple(batch["images"].shape) for batch in batches]
    assert torch.uint8 == batches[0]["images"].dtype
    assert torch.float32 == batches[0]["targets"].dtype
    assert len(batches) == data.num_batches(4)
    targets = batches[0]["targets"]
    used = targets[..., 0] >= 0
    assert targets.shape[1] == used.sum(1).max()
    assert (targets[~used] == torch.tensor([-1.0, 0, 0, 0, 0])).all()
    assert (targets[used][:, 1:] > 0).all()
    assert (targets[used][:, 1:] <= 1).all()


def test_each_image_leads_one_sample_an_epoch(small):
    """An epoch visits every image once, in an order of its own."""
    data = _open(small)
    orders = [torch.cat([b["image_ids"] for b in _train(data, epoch=e)]).tolist() for e in (0, 1)]

    assert list(range(6)) == sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_the_same_seed_and_epoch_give_the_same_bytes(small):
    """Another process, or another reading, gets equal batches; another seed or epoch does not."""
    expected = _train(_open(small, seed=3), epoch=2)

    assert _same(expected, _train(_open(small, seed=3), epoch=2))
    assert not _same(expected, _train(_open(small, seed=3), epoch=1))
    assert not _same(expected, _train(_open(small, seed=4), epoch=2))


def test_workers_do_not_change_the_batches(small):
    """Loading in two processes gives what loading in this one gives."""
    assert _same(_train(_open(small)), _train(_open(small, num_workers=2)))


def test_the_batch_size_does_not_change_the_samples(small):
    """Split into ones, an epoch holds the same images in the same order."""
    data = _open(small)
    together = torch.cat([batch["images"] for batch in _train(data, 6)])
    alone = torch.cat([batch["images"] for batch in _train(data, 1)])

    assert torch.equal(together, alone)


def test_an_epoch_can_be_continued(small):
    """Leaving out the first images gives the rest of the same epoch."""
    data = _open(small)

    assert _same(_train(data, 2)[1:], _train(data, 2, first_image=2))


def test_closing_the_mosaic_leaves_one_image_a_sample(small):
    """Without full augmentation no sample has more objects than its own image."""
    data = _open(small)
    for batch in _train(data, augment_fully=False):
        num_objects = (batch["targets"][..., 0] >= 0).sum(1).numpy()
        assert (num_objects <= data.objects_per_image[batch["image_ids"].numpy()]).all()


def test_objects_are_counted_for_each_training_image(small):
    """The counts are those of the label files."""
    data = _open(small)
    labels = sorted((small.parent / "labels" / "train").iterdir())

    assert [len(file.read_text().splitlines()) for file in labels] == (
        data.objects_per_image.tolist()
    )
    assert np.int64 == data.objects_per_image.dtype
    assert (6, 3, 10) == (data.num_training_images, data.num_validation_images, data.num_classes)


@pytest.mark.parametrize("cache", ["ram", "disk", "val"])
def test_caching_changes_nothing_but_speed(small, cache):
    """Samples from the cache equal those from files, in training and in validation."""
    plain, cached = _open(small), _open(small, extra={"cache": cache})

    assert _same(_train(plain), _train(cached))
    validation = [list(data.validation_batches(micro_batch_size=2)) for data in (plain, cached)]
    assert _same(*validation)


def test_the_cache_on_disk_is_read_again_and_notices_changes(small):
    """A kept image stands for its file until that changes; its earlier state is removed then."""
    _open(small, extra={"cache": "disk"})
    folder = small.parent / "memplan-cache-64-linear"
    before = {file.name for file in folder.iterdir()}
    changed = small.parent / "images" / "train" / "0000.jpg"
    shutil.copy(small.parent / "images" / "train" / "0001.jpg", changed)
    os.utime(changed, ns=(1, 1))
    cached = _open(small, extra={"cache": "disk"})
    after = {file.name for file in folder.iterdir()}

    assert 6 == len(before) == len(after)
    assert 5 == len(before & after)
    assert _same(_train(_open(small)), _train(cached))


def test_a_lost_cache_file_is_replaced_by_the_image(small):
    """A file that vanishes from the cache during training costs time, nothing else."""
    data = _open(small, extra={"cache": "disk"})
    shutil.rmtree(small.parent / "memplan-cache-64-linear")

    assert _same(_train(_open(small)), _train(data))


def test_images_of_both_splits_are_told(small):
    """Validation on training images is warned of."""
    text = small.read_text().replace("val: images/val", "val: images/train")
    small.write_text(text)

    assert any("6 of the 6 validation images" in warning for warning in _open(small).warnings)


def test_a_download_entry_is_passed_over_with_a_notice(small):
    """Nothing is fetched and no script is run; the user is told."""
    small.write_text(small.read_text() + "download: print(1)\n")

    assert "download is passed over" in _open(small).warnings[0]


def test_processes_share_an_epoch(small):
    """Two processes together see every image once, each its part."""
    data = _open(small)
    parts = [_train(data, 2, rank=rank, num_ranks=2) for rank in (0, 1)]
    seen = [torch.cat([b["image_ids"] for b in part]).tolist() for part in parts]

    assert list(range(6)) == sorted(seen[0] + seen[1])
    assert [3, 3] == [len(part) for part in seen]


def test_validation_batches_say_how_they_were_made(small):
    """Validation is in file order, with original shapes and the letterbox's map."""
    data = _open(small, extra={"validation_size": 96})
    (batch,) = data.validation_batches(micro_batch_size=8)

    assert (3, 3, 96, 96) == tuple(batch["images"].shape)
    assert [0, 1, 2] == batch["image_ids"].tolist()
    assert [[320, 320]] * 3 == batch["original_shapes"].tolist()
    assert [[0.2, 0.2, 16, 16]] * 3 == batch["letterbox"].tolist()
    first = (small.parent / "labels" / "val" / "0000.txt").read_text().split()[:5]
    label, x, y, width, height = map(float, first)
    expected = [label, x / 1.5 + 1 / 6, y / 1.5 + 1 / 6, width / 1.5, height / 1.5]
    assert expected == pytest.approx(batch["targets"][0, 0].tolist(), abs=1e-5)


def test_a_single_class_merges_all(small):
    """With single_class every object is of class 0, and there is one name."""
    data = _open(small, single_class=True)
    classes = torch.cat([batch["targets"][..., 0].flatten() for batch in _train(data)])

    assert {-1.0, 0.0} >= set(classes.tolist())
    assert (1, ("object",)) == (data.num_classes, data.class_names)


def test_sparse_images_are_left_out_of_training_only(small):
    """min_items drops training images with fewer objects and says when none is left."""
    counts = _open(small).objects_per_image
    data = _open(small, min_items=int(counts.max()))

    assert (counts == counts.max()).sum() == data.num_training_images
    assert 3 == data.num_validation_images
    with pytest.raises(BadInputError, match="No training image has 99 objects"):
        _open(small, min_items=99)


def test_polygons_bring_their_possible_copies_into_the_count(small):
    """An image of polygons counts the share of them that copy-paste may add, rounded up."""
    (small.parent / "labels" / "train" / "0000.txt").write_text("0 .1 .1 .5 .1 .5 .5\n" * 1)

    assert 2 == _open(small).objects_per_image[0]
    assert 1 == _open(small, hyperparameters={"copy_paste": 0.0}).objects_per_image[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_vanishes_or_breaks_is_left_out(small, num_workers):
    """Another stands in for it in training, validation does without; both are counted by name."""
    data = _open(small, num_workers=num_workers)
    folder = small.parent / "images"
    (folder / "train" / "0003.jpg").unlink()
    (folder / "val" / "0001.jpg").write_bytes(b"torn")
    batches = _train(data, augment_fully=False)
    validated = list(data.validation_batches(micro_batch_size=1))

    assert [4, 2] == [len(batch["images"]) for batch in batches]
    assert 3 not in torch.cat([batch["image_ids"] for batch in batches])
    assert [0, 2] == sorted(int(batch["image_ids"]) for batch in validated)
    gone, torn = data.unreadable
    assert "0003.jpg cannot be read any more: No such file or directory." in gone
    assert "0001.jpg is not the image it was" in torn
    assert [1, 1] == list(data.unreadable.values())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_are_all_gone_are_told_in_one_line(small, num_workers):
    """Nothing stands in for them; a file is named, also by a loader process."""
    data = _open(small, num_workers=num_workers)
    shutil.rmtree(small.parent / "images" / "train")

    with pytest.raises(BadInputError, match=r"^/\S*\.jpg cannot be read any more") as caught:
        _train(data)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"extra": {"rekt": True}}, UnknownNameError, "data option 'rekt'"),
        ({"extra": {"cache": "tape"}}, BadInputError, "cache 'tape' is not offered"),
        ({"extra": {"rect": True, "image_weights": True}}, UsageError, "Give one of them"),
        ({"hyperparameters": {"mosiac": 1.0}}, UnknownNameError, "'mosaic'"),
        ({"hyperparameters": {"mosaic": 2.0}}, BadInputError, "a probability"),
        ({"num_workers": -1}, UsageError, "num_workers -1"),
    ],
)
def test_unknown_options_are_refused_by_name(small, options, error, message):
    """An option of no meaning here is never ignored."""
    with pytest.raises(error, match=message):
        _open(small, **options)


def test_a_batch_of_nothing_is_refused(small):
    """A micro-batch below 1 is wrong usage."""
    with pytest.raises(UsageError, match="micro_batch_size 0"):
        _train(_open(small), 0)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_workers_share_what_is_kept(small, cache):
    """Loader processes read kept images and labels as this process does."""
    plain, cached = _open(small), _open(small, num_workers=2, extra={"cache": cache})

    assert _same(_train(plain), _train(cached))
    validation = [list(data.validation_batches(micro_batch_size=2)) for data in (plain, cached)]
    assert _same(*validation)


def test_workers_are_copies_of_no_process_that_has_computed(small):
    """Their parent is the server, not this process, whose tensor code has threads."""
    iterator = iter(_open(small, num_workers=1).training_batches(**FIRST))
    next(iterator)
    (worker,) = (one for one in multiprocessing.active_children() if one.daemon)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    del iterator

    assert f"PPid:\t{os.getpid()}\n" not in status


def _kill_worker():
    (worker,) = (one for one in multiprocessing.active_children() if one.daemon)
    worker.kill()


def test_a_worker_that_is_gone_is_replaced(small):
    """The batches go on where it was, with the same content."""
    arguments = FIRST | {"micro_batch_size": 1}
    expected = list(_open(small).training_batches(**arguments))
    iterator = iter(_open(small, num_workers=1).training_batches(**arguments))
    found = [next(iterator)]
    _kill_worker()
    found += iterator

    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one["images"], other["images"])


class _Deadly(torch.utils.data.Dataset):
    """Ends the process that reads it."""

    def __getitem__(self, place):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_gone_again_and_again_are_told_in_one_line():
    """Loader processes that the system keeps ending are said, with the way out."""
    with pytest.raises(ProcessError, match=r"gone or stuck .*--workers 0") as caught:
        list(read_batches(_Deadly(), [[0]], list, 1, 0))

    assert "\n" not in str(caught.value)


def _swap_names(path):
    text = path.read_text()
    assert '["0", "1", ' in text
    path.write_text(text.replace('["0", "1", ', '["1", "0", '))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_swap_names, {"class names"}),
        (
            lambda path: (path.parent / "images/train/0001.jpg").unlink(),
            {"training images", "training labels"},
        ),
        (
            lambda path: (path.parent / "labels/val/0001.txt").write_text("1 0.5 0.5 0.1 0.1\n"),
            {"validation labels"},
        ),
    ],
)
def test_a_changed_data_set_is_told_by_its_parts(small, change, parts):
    """Names swapped, an image removed, labels replaced; another folder is no change."""
    before = _open(small).fingerprint()
    moved = shutil.copytree(small.parent, small.parent.with_name("moved"))
    change(small)
    after = _open(small).fingerprint()

    assert before == _open(moved / small.name).fingerprint()
    assert parts == {name for name in before if before[name] != after[name]}
