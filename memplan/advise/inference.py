"""What running a trained network takes: the question of `memplan probe --mode val|predict`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from memplan.advise.question import Question
from memplan.capabilities import Infers
from memplan.errors import UsageError
from memplan.spec import LEVER
from memplan.tape import Tape

TRAIN = "train"
MODES = (TRAIN, "val", "predict")
_OF_RUNNING = frozenset(
    {"precision", "memory_format", "allocator", "cudnn_benchmark", "deterministic", "allow_tf32"}
)


def check_mode_options(mode: str, *, half: bool, given: Collection[str]) -> None:
    """Refuse a mode that there is none of, and options that are for training alone.

    Args:
        mode: as typed.
        half: whether `--half` was.
        given: the names of the parameters that were.

    Raises:
        UsageError: one is of no meaning.
    """
    if mode not in MODES:
        raise UsageError(f"--mode {mode} is not offered. Give {', '.join(MODES)}.")
    if mode == TRAIN:
        if half:
            raise UsageError("--half is for --mode val and predict. Give --precision amp-fp16.")
        return
    options = {name: lever.option for name, lever in LEVER.items() if name not in _OF_RUNNING}
    options |= {
        "val_batch": "--val-batch",
        "multi_scale": "--multi-scale",
        "objects_per_image": "--objects-per-image",
        "data_path": "--data",
        "tape_path": "--tape",
    }
    if clash := next((option for name, option in options.items() if name in given), None):
        raise UsageError(f"{clash} is of training, and --mode {mode} trains nothing. Leave it out.")


def check_mode(question: Question, mode: str, *, half: bool) -> None:
    """Refuse what a trained network is not run with.

    Raises:
        UsageError: several devices, a precision that the network does not run in, or a workload
            whose sizes depend on what it detects.
    """
    if mode == TRAIN:
        return
    if question.devices > 1:
        raise UsageError(f"--devices {question.devices}: --mode {mode} runs on one. Leave it out.")
    if question.made.states_sizes and not isinstance(question.made, Infers):
        raise UsageError(
            f"--mode {mode}: what {question.made.name} takes depends on how much it detects, which "
            "is not known. Probe its training, or watch your script: memplan run --gpu NAME -- ..."
        )
    infers, precision = isinstance(question.made, Infers), question.spec.precision
    if infers and precision != "fp32":
        raise UsageError(
            f"--precision {precision}: --mode {mode} of {question.made.name} runs in fp32, or with "
            "--half. Leave it out."
        )
    if half and not infers:
        raise UsageError(
            f"--half: {question.made.name} does not say how it runs so. Give --precision amp-fp16."
        )


def notes_on_mode(question: Question, mode: str) -> tuple[str, ...]:
    """Return what a reader must know of how a trained network is taken to run."""
    if mode == TRAIN:
        return ()
    if isinstance(question.made, Infers):
        sentence = (
            "The network is as memplan runs it, without auxiliary branch and its norms merged. "
            "Suppression of overlapping detections is not counted: one image at a time, about 100 "
            "bytes a candidate."
        )
        return (sentence,)
    return ("The network is the model in evaluation, without gradients.",)


def inference_recorder(question: Question, mode: str, *, half: bool) -> Callable[[int], Tape]:
    """Return the function that records a pass, by images at once."""
    return partial(_record, question, mode, half)


def _record(question: Question, mode: str, half: bool, batch_size: int) -> Tape:
    from memplan.trace.inference import record_inference

    with question.recording():
        return record_inference(question.made, batch_size, question.spec, mode=mode, half=half)
