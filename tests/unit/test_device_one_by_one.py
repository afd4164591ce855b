"""What the workspaces of 1x1 convolutions leave open."""

import numpy as np
import pytest

from memplan.convolution import ConvolutionProblem
from memplan.device import catalogue, cudnn_asking
from memplan.device.cudnn import WorkspaceOracle
from memplan.device.life import Life
from memplan.device.one_by_one import PRODUCT_BYTES, OneByOne, is_matrix_product
from memplan.device.replay import Simulator
from memplan.fit.predictor import Predictor
from memplan.phantom.child import PhantomChild
from memplan.phantom.launch import environment
from memplan.registry import make_workload
from memplan.trace.record import record


def problem(**changes):
    values = {
        "kind": "forward",
        "dtype": "float16",
        "input": (4, 64, 28, 28),
        "weight": (128, 64, 1, 1),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
    }
    return ConvolutionProblem(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"stride": (2, 2)}, False),
        ({"weight": (128, 64, 3, 3)}, False),
        ({"padding": (1, 1)}, False),
        ({"groups": 2, "weight": (128, 32, 1, 1)}, False),
    ],
)
def test_a_matrix_product_has_one_position_and_no_stride(changes, expected):
    """Only such a convolution may be given to cuBLASLt."""
    assert expected == is_matrix_product(problem(**changes))


def test_products_may_need_none_of_the_workspace_that_was_asked():
    """Other engines of the same convolutions, and other convolutions, keep theirs."""
    problems = [problem(), problem(kind="weight_gradient"), problem(weight=(128, 64, 3, 3))]
    asked = np.array([PRODUCT_BYTES, 7, PRODUCT_BYTES])

    assert asked.tolist() == OneByOne.AS_ASKED.applied(problems, asked).tolist()
    assert [0, 7, PRODUCT_BYTES] == OneByOne.WITHOUT_WORKSPACE.applied(problems, asked).tolist()
    assert [] == OneByOne.WITHOUT_WORKSPACE.applied([], np.array([], dtype=np.int64)).tolist()


def test_cudnn_asks_for_a_product_what_is_taken_for_its_workspace():
    """4 MiB and their alignment, for the convolution and not for its like of stride 2."""
    oracle = WorkspaceOracle(catalogue.card("a100-40gb"))
    like = {"input": (4, 64, 160, 160), "weight": (64, 64, 1, 1)}
    product, strided = problem(**like), problem(**like, stride=(2, 2))

    assert PRODUCT_BYTES == oracle.bytes(product)
    assert PRODUCT_BYTES != oracle.bytes(strided)


def test_kept_answers_are_of_what_cublaslt_answers():
    """A process on a phantom card that is described otherwise shares no answers with this one."""
    card = catalogue.card("a100-40gb")
    described = environment(card)["PHANTOM_DEVICE"]

    def asked_by(more):
        variables = {"PHANTOM_DEVICE": described + more}
        modules = (cudnn_asking.__name__,)
        with PhantomChild(card, imports=modules, variables=variables) as child:
            return child.call(cudnn_asking.asked_by, {})

    assert cudnn_asking.asked_by() == asked_by("")
    assert cudnn_asking.asked_by() != asked_by(";cublaslt_workspace=0")


def _range(name, batch):
    workload = make_workload(name)
    simulators = [Simulator(catalogue.card("a100-40gb"))]
    predictor = Predictor(
        lambda size: record(workload, size), simulators, Life(accumulates=False), batch, batch
    )
    return predictor.one_by_one_range(0, batch), predictor.peaks(0, batch).device_used_peak_bytes


@pytest.mark.slow
def test_a_network_of_1x1_convolutions_has_a_range_and_one_of_3x3_has_none():
    """What was asked lies within; VGG's windows leave nothing open."""
    (low, high), asked = _range("torchvision:efficientnet_b0", 16)
    assert low <= asked <= high
    assert low < high
    (low, high), asked = _range("torchvision:vgg11", 2)
    assert (asked, asked) == (low, high)
