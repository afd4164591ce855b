"""Options of the official scripts that memplan answers without having them."""

import pytest
from click.testing import CliRunner

from memplan.cli import cli
from memplan.cli.official_words import Side
from memplan.errors import UsageError


def _refusal(*arguments):
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, UsageError)
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "--weights", "a.pt", "--include", "onnx_end2end"), "a TensorRT plugin's"),
        (("export", "--weights", "a.pt", "--int8"), "--int8 is not offered"),
        (("export", "--weights", "a.pt", "--imgsz", "64", "96"), "--img 64 96"),
        (("export", "--weights", "a.pt", "--include", "onnx", "pt", "--output", "b.onnx"),
         "names one file, and onnx, pt are asked for"),
        (("export", "--weights", "a.pt", "--format", "openvino", "--output", "b"), "end in .xml"),
        (("val", "--data", "d.yaml", "--weights", "a.pt", "--save-hybrid"), "--save-hybrid is"),
        (("predict", "--weights", "a.pt", "--source", "b.jpg", "--augment"), "--augment is not"),
        (("predict", "--weights", "a.pt", "--source", "b.jpg", "--img", "64", "x"), "--img 64,x"),
    ],
)  # fmt: skip
def test_what_would_change_a_result_is_refused_with_its_reason(arguments, message):
    """Two sides that differ, and options that have no counterpart."""
    assert message in _refusal(*arguments)


def test_a_side_may_be_given_twice():
    """As height and width, which are one for squares."""
    assert 640 == Side().convert("640,640", None, None) == Side().convert(640, None, None)


def test_an_official_option_that_changes_nothing_says_so():
    """The command goes on, to the next thing that is wrong."""
    result = CliRunner().invoke(
        cli, ["predict", "--weights", "a.pt", "--source", "b.jpg", "--view-img"]
    )

    assert "--view-img changes nothing: no window is opened" in result.stderr
    assert "No weights at a.pt" in str(result.exception)


def test_a_launcher_may_put_the_rank_before_the_command():
    """`python -m torch.distributed.launch -m memplan train` does."""
    result = CliRunner().invoke(cli, ["--local-rank=1", "gpus", "--help"])

    assert 0 == result.exit_code
