"""cuDNN's C interface: found or refused in one line, and descriptors that say no."""

import pytest

from memplan.device import cudnn_descriptors, cudnn_plans
from memplan.device.cudnn_descriptors import CudnnError, Descriptors
from memplan.errors import BadInputError


def test_a_missing_cudnn_is_refused_in_one_line(monkeypatch):
    """Without the library there is no answer, and the message names the way out."""
    monkeypatch.setattr(cudnn_descriptors, "_path", lambda: "libcudnn-that-is-not-there.so.9")

    with pytest.raises(BadInputError, match=r"not-there.*Install the CUDA build of torch") as error:
        cudnn_descriptors.library.__wrapped__()
    assert "\n" not in str(error.value)


def test_a_library_that_is_not_cudnn_is_refused(monkeypatch):
    """A file of that name without cuDNN's functions is as good as none."""
    monkeypatch.setattr(cudnn_descriptors, "_path", lambda: "libc.so.6")

    with pytest.raises(BadInputError, match="cudnnGetVersion"):
        cudnn_descriptors.library.__wrapped__()


def test_a_cudnn_before_device_descriptions_is_refused(monkeypatch):
    """What cannot be told of a device that is not there is of no use here."""
    monkeypatch.setattr(cudnn_descriptors, "_OLDEST_VERSION", 990000)

    with pytest.raises(BadInputError, match=r"99\.0\.0 can. Install a newer torch"):
        cudnn_descriptors.library.__wrapped__()


def test_the_version_is_written_as_people_write_it():
    """91900 is 9.19.0."""
    number = cudnn_descriptors.version_number()
    major, minor, patch = map(int, cudnn_descriptors.installed_version().split("."))

    assert number == 10000 * major + 100 * minor + patch


def test_a_descriptor_that_makes_no_sense_is_an_error():
    """An operation graph without operations is refused, and nothing is left behind."""
    with Descriptors() as descriptors, pytest.raises(CudnnError):
        descriptors.make(15)
    assert [] == descriptors._made


def test_a_description_that_is_none_is_refused_in_one_line():
    """CuDNN reads JSON with keys it knows; anything else ends in one line."""
    with pytest.raises(BadInputError, match="does not accept this card's description") as error:
        cudnn_plans.device("{}")
    assert "\n" not in str(error.value)
