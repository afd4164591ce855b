"""Out of memory: the same images again in smaller micro-batches, nothing lost."""

import json

import pandas as pd
import pytest
import torch
from train_toy import Toy, ToyData, toy_options

from memplan.errors import DeviceOutOfMemoryError, is_out_of_memory
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint
from memplan.training.guard import BufferSnapshot, OutOfMemory, attempt, evenly, split


def _events(folder, name):
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def _weights(summary):
    return load_checkpoint(summary.run_folder / "weights/last.pt").model


def test_backing_off_equals_having_started_small(tmp_path):
    """A run refused at 4 images gives the weights and losses of one that began with 2."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = train(Toy(), toy_options(tmp_path / "a", batch=2))
    refused = train(Toy(most_images=2), toy_options(tmp_path / "b", batch=4))

    for name, weight in _weights(small).items():
        torch.testing.assert_close(weight, _weights(refused)[name], rtol=1e-6, atol=1e-8)
    assert (2, 2, 1) == (refused.micro_batch_size, refused.accumulation_steps, refused.back_offs)
    expected, actual = (pd.read_csv(run.run_folder / "results.csv") for run in (small, refused))
    assert expected["train/error"].tolist() == pytest.approx(
        actual["train/error"].tolist(), rel=1e-6
    )
    assert expected["steps"].tolist() == actual["steps"].tolist()


def test_the_effective_batch_stays(tmp_path):
    """8 images at once become 2 with four times the micro-batches a step."""
    summary = train(Toy(most_images=2), toy_options(tmp_path, batch=8, effective_batch=8))

    assert (2, 4, 2) == (
        summary.micro_batch_size,
        summary.accumulation_steps,
        summary.back_offs,
    )


class _RefusesOnce(Toy):
    """Refuses the second micro-batch of a step, once."""

    passes = 0

    def compute_loss(self, model, batch):
        self.passes += 1
        answer = super().compute_loss(model, batch)
        if self.passes == 2:
            raise torch.OutOfMemoryError("Tried to allocate 1 GiB.")
        return answer


def test_a_step_refused_halfway_is_repeated_from_its_start(tmp_path):
    """Gradients and batch-norm statistics of the refused step's first half leave no trace."""
    options = {"batch": 2, "effective_batch": 4, "epochs": 1}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = train(Toy(norm=True), toy_options(tmp_path / "a", **(options | {"batch": 1})))
    refused = train(_RefusesOnce(norm=True), toy_options(tmp_path / "b", **options))

    for name, weight in _weights(small).items():
        torch.testing.assert_close(weight, _weights(refused)[name], rtol=1e-6, atol=1e-8)


def test_events_tell_what_happened(tmp_path):
    """`events.jsonl` has the device's own words, once, and the new size."""
    summary = train(Toy(most_images=2), toy_options(tmp_path, batch=4))

    [out] = _events(summary.run_folder, "out_of_memory")
    [back] = _events(summary.run_folder, "backed_off")
    assert ("Tried to allocate 1 GiB.", "training") == (out["message"], out["phase"])
    assert (2, 2) == (back["micro_batch_size"], back["accumulation"])


def test_one_image_that_does_not_fit_ends_the_run_in_one_line(tmp_path):
    """Below one image there is nothing to try; the message says what would help."""
    with pytest.raises(DeviceOutOfMemoryError, match="Not even one image fits") as caught:
        train(Toy(most_images=0), toy_options(tmp_path))

    assert "\n" not in str(caught.value)


def test_without_the_guard_the_first_refusal_ends_the_run(tmp_path):
    """`--no-guard` turns running out of memory into a one-line error."""
    workload = Toy(most_images=2)
    with pytest.raises(DeviceOutOfMemoryError, match="Lower --batch, or train with --guard"):
        train(workload, toy_options(tmp_path, guard=False))

    assert 1 == workload.refused


class _SmallPredictions(Toy):
    """Finds no room to predict more than one image."""

    def predict(self, model, batch):
        if len(batch["images"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return super().predict(model, batch)


def test_validation_backs_off_on_its_own(tmp_path):
    """Evaluation in smaller batches sees every image once; training keeps its size."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(Toy(), toy_options(tmp_path / "a"))
    halved = train(_SmallPredictions(), toy_options(tmp_path / "b"))

    assert whole.metrics == pytest.approx(halved.metrics)
    assert (4, 2) == (halved.micro_batch_size, halved.back_offs)


def test_other_errors_pass_through():
    """A shape mismatch is no lack of memory."""

    def work():
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        attempt(work)


def test_exhaustion_reported_by_libraries_counts():
    """CuBLAS says it in its own words; the first line is kept."""

    def work():
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling\nmore")

    assert OutOfMemory("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling") == attempt(work)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        *map(
            RuntimeError,
            (
                "CUDA error: out of memory",
                "CUDA driver error: out of memory",
                "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear",
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "GET was unable to find an engine to execute this computation",
                "FIND was unable to find an engine to execute this computation",
                "Unable to find a valid cuDNN algorithm to run convolution",
                "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling",
                "cuFFT error: CUFFT_ALLOC_FAILED",
                "NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'",
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory",
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
                "std::bad_alloc",
                "unable to mmap 4096 bytes: Cannot allocate memory (12)",
            ),
        ),
    ],
    ids=str,
)
def test_every_way_to_say_that_there_is_no_room_is_known(error):
    """The device's allocator, its libraries, the host's allocator and the system."""
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
    ],
    ids=str,
)
def test_other_errors_are_no_lack_of_memory(error):
    """A fault of the program, or of a disk, is not repeated smaller."""
    assert not is_out_of_memory(error)


class _NeedsTwo(Toy):
    """Cannot run a single image, as batch norm over one value cannot."""

    def compute_loss(self, model, batch):
        if len(batch["images"]) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return super().compute_loss(model, batch)


def test_parts_too_small_to_be_run_end_the_run_in_one_line(tmp_path):
    """Two images find no room and one cannot be run: said, and the last step saved."""
    match = r"^Not even 2 images fit, and fewer cannot be run \(.*\. Everything is saved\."
    with pytest.raises(DeviceOutOfMemoryError, match=match) as caught:
        train(_NeedsTwo(most_images=1), toy_options(tmp_path, batch=5))

    assert "\n" not in str(caught.value)


def test_parts_are_even_so_that_none_is_too_small(tmp_path):
    """5 images of which 4 fit are 3 and 2, not 4 and 1."""
    options = {"batch": 5, "effective_batch": 5}
    summary = train(_NeedsTwo(most_images=4), toy_options(tmp_path, **options))

    assert (3, 1) == (summary.micro_batch_size, summary.back_offs)
    batch = {"images": ToyData().images[:7]}
    assert [3, 2, 2] == [len(part["images"]) for part in evenly(batch, 3)]
    assert torch.equal(batch["images"], torch.cat([part["images"] for part in evenly(batch, 3)]))


def test_an_error_of_the_planned_batch_is_the_users_to_see(tmp_path):
    """Nothing was made smaller, so it is no matter of size."""
    with pytest.raises(ValueError, match="Expected more than 1"):
        train(_NeedsTwo(), toy_options(tmp_path, batch=1))


def test_splitting_keeps_images_and_order():
    """Ten images in pieces of at most 4 are 4, 4 and 2, in order."""
    data = ToyData()
    parts = split([{"images": data.images, "targets": data.targets}], 4)

    assert [4, 4, 2] == [len(part["targets"]) for part in parts]
    assert torch.equal(data.images, torch.cat([part["images"] for part in parts]))


def test_a_snapshot_brings_buffers_back():
    """Batch-norm statistics and counts are those remembered."""
    norm = torch.nn.BatchNorm1d(2)
    snapshot = BufferSnapshot(norm)
    snapshot.take()
    norm(torch.rand(4, 2))
    snapshot.restore()

    assert torch.equal(torch.zeros(2), norm.running_mean)
    assert 0 == norm.num_batches_tracked


class _Spikes(Toy):
    """Finds no room for two images in its third pass."""

    passes = 0

    def compute_loss(self, model, batch):
        self.passes += 1
        if self.passes == 3 and len(batch["images"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return super().compute_loss(model, batch)


def test_after_a_lone_spike_the_planned_micro_batch_is_tried_again(tmp_path):
    """At the 100th step; steps, images and rates stay those of an undisturbed run."""
    options = {"batch": 2, "effective_batch": 2, "epochs": 22, "noval": True}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = train(Toy(), toy_options(tmp_path / "a", **options))
    spiked = train(_Spikes(), toy_options(tmp_path / "b", **options))

    [again] = _events(spiked.run_folder, "micro_batch_tried_again")
    assert {"epoch": 20, "micro_batch_size": 2} == {
        name: again[name] for name in ("epoch", "micro_batch_size")
    }
    tables = [pd.read_csv(run.run_folder / "results.csv") for run in (plain, spiked)]
    for column in ("steps", "x/lr0", "x/lr1"):
        assert tables[0][column].tolist() == tables[1][column].tolist()
    assert [1] * 19 + [2] * 3 == tables[1]["micro_batch_size"].tolist()
    for name, weight in _weights(plain).items():
        torch.testing.assert_close(weight, _weights(spiked)[name], rtol=1e-5, atol=1e-7)


def test_one_image_that_fits_only_recomputed_is_survived(tmp_path):
    """Not even one image fits, until activations are recomputed; the images are repeated."""

    class Recomputed(Toy):
        def compute_loss(self, model, batch):
            if "forward" not in vars(model[0]):
                raise torch.OutOfMemoryError("no room")
            return super().compute_loss(model, batch)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = train(Toy(), toy_options(tmp_path / "a", batch=1))
    tight = train(Recomputed(), toy_options(tmp_path / "b", batch=2))

    assert ["recompute"] == [one["by"] for one in _events(tight.run_folder, "memory_spared")]
    for name, weight in _weights(plain).items():
        torch.testing.assert_close(weight, _weights(tight)[name], rtol=1e-6, atol=1e-8)
