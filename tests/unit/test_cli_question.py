"""Options as typed become a question, or are refused as typed."""

import pytest

from memplan.advise import DEFAULT_WORKLOAD, Question
from memplan.advise.subject import workload_name
from memplan.cli.question import parse_batches, question_from
from memplan.device import catalogue
from memplan.errors import BadInputError, UnknownNameError, UsageError

TYPED = {
    "cfg": None,
    "workload": "torchvision:resnet18",
    "blocks": None,
    "settings": (),
    "img": None,
    "precision": "amp-fp16",
    "memory_format": "contiguous",
    "optimizer": "SGD",
    "objects_per_image": None,
    "data_path": None,
    "recompute": "none",
    "gpus": ("t4",),
    "capacity": None,
    "allocator": "",
    "calibration": None,
    "devices": 1,
    "lean": False,
    "fused": False,
    "multi_scale": False,
    "assigner_parts": None,
    "val_batch": None,
}


@pytest.mark.parametrize(
    ("texts", "batches"),
    [
        (("16",), [16]),
        (("1:4",), [1, 2, 3, 4]),
        (("8", "2", "8"), [2, 8]),
        (("3:5", "4:6", "1"), [1, 3, 4, 5, 6]),
        (("7:7",), [7]),
        (("08",), [8]),
    ],
)
def test_batches_are_ascending_and_each_once(texts, batches):
    """Numbers and ranges are put together."""
    assert batches == parse_batches(texts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "--batch 0 is below 1"),
        ("0:4", "--batch 0:4 is below 1"),
        ("5:2", "Write 2:5"),
        ("-1", "neither a number"),
        ("", "neither a number"),
        ("1:", "neither a number"),
        (":4", "neither a number"),
        ("1:2:3", "neither a number"),
        ("1.5", "neither a number"),
        (" 4", "neither a number"),
        ("\N{SUPERSCRIPT TWO}", "neither a number"),
    ],
)
def test_batches_that_are_none_are_wrong_usage(text, words):
    """What is no batch is refused with the text as typed."""
    with pytest.raises(UsageError, match=words):
        parse_batches((text,))


def test_one_option_names_the_workload():
    """`--cfg` or `--workload`, the default without either, never both."""
    assert "yolov9-t" == workload_name("yolov9-t", None)
    assert "torchvision:vgg11" == workload_name(None, "torchvision:vgg11")
    assert DEFAULT_WORKLOAD == workload_name(None, None)
    assert "" == workload_name("", None)
    with pytest.raises(UsageError, match="Give one"):
        workload_name("yolov9-t", "torchvision:vgg11")


def test_options_become_a_question():
    """Each option arrives under its field, sizes in bytes."""
    question = question_from(
        TYPED
        | {"img": 96, "settings": ("num_classes=7",), "capacity": "2GiB", "gpus": ("t4", "h200")}
    )

    assert {"image_size": 96, "num_classes": 7} == question.arguments
    assert [2 << 30, 2 << 30] == [card.capacity_bytes for card in question.cards()]
    assert (96, 7) == (question.made.image_size, question.made.num_classes)
    assert () == question.step_spec.recompute


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img": 0}, "--img 0 is below 1"),
        ({"img": -64}, "--img -64 is below 1"),
        ({"objects_per_image": -1}, "--objects-per-image -1 is below 0"),
        ({"capacity": "junk"}, "24GiB"),
        ({"settings": ("x",)}, "KEY=VALUE"),
    ],
)
def test_values_out_of_range_are_wrong_usage(options, words):
    """A value that nothing can take is refused before anything is recorded."""
    with pytest.raises(UsageError, match=words):
        question_from(TYPED | options)


def test_choices_are_checked_when_they_are_read():
    """Precision and layout are names from a list."""
    for name in ("precision", "memory_format"):
        with pytest.raises(UsageError, match="'nonsense'"):
            question_from(TYPED | {name: "nonsense"})


def test_recompute_names_modules():
    """`all` is spelt out, a list is split at its commas."""
    everything = question_from(TYPED | {"recompute": "all"})
    some = question_from(TYPED | {"recompute": "layer1.0, layer1.1,"})

    assert "layer1.0" in everything.step_spec.recompute
    assert ("layer1.0", "layer1.1") == some.step_spec.recompute


def test_cards_are_names_indices_or_records():
    """A record passes as it is, a name is looked up, an index means this machine."""
    card = catalogue.card("t4")

    assert [card, card] == Question(gpus=(card, "t4")).cards()
    with pytest.raises(UnknownNameError, match="rtx-3090"):
        Question(gpus=("rtx-309",)).cards()
    with pytest.raises(BadInputError, match="context"):
        Question(gpus=("t4",), capacity_bytes=1).cards()


def test_model_that_cannot_be_built_is_told_in_one_line():
    """What building a model raises names the workload and keeps its cause."""
    question = question_from(TYPED | {"settings": ("num_classes=-3",)})

    with pytest.raises(BadInputError, match=r"resnet18 cannot be built: .*negative") as caught:
        _ = question.all_blocks

    assert 1 == len(str(caught.value).splitlines())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_versions_of_the_training_reach_the_question():
    """`--cuda` decides the cards' context; `--cudnn` is kept for the answer's note."""
    question = question_from({**TYPED, "cuda_version": "11.3", "cudnn_version": "8.2"})
    (card,) = question.cards()

    assert card.loads_eagerly
    assert card.context_bytes > catalogue.card("t4").context_bytes
    assert "8.2" == question.cudnn_version
