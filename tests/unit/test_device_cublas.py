"""cuBLAS workspaces by card, release and environment."""

import pytest

from memplan.device.cublas import configured_bytes, workspaces
from memplan.errors import BadInputError


@pytest.mark.parametrize(
    ("capability", "release", "num_bytes"),
    [
        ((8, 6), "2.11.0", 8_519_680),
        ((7, 5), "2.11.0+cu130", 8_519_680),
        ((9, 0), "2.11.0", 33_554_432),
        ((9, 0), "2.0.1", 33_554_432),
        ((10, 0), "2.11.0", 8_519_680),
        ((12, 0), "2.11.0", 8_519_680),
        ((10, 0), "2.12.0", 33_554_432),
        ((12, 0), "2.13.0", 33_554_432),
        ((11, 0), "2.13.0", 8_519_680),
        ((11, 0), "2.14.0", 33_554_432),
        ((8, 9), "2.15.0a0", 8_519_680),
    ],
)
def test_the_default_follows_architecture_and_release(capability, release, num_bytes):
    """Hopper has 32 MiB always, Blackwell from 2.12 on, all others 8.125 MiB."""
    assert num_bytes == workspaces(capability, release, {}).cublas_bytes


@pytest.mark.parametrize(
    ("config", "num_bytes"),
    [
        (":4096:2:16:8", 8_519_680),
        (":4096:8", 33_554_432),
        (":16:8", 131_072),
        (":0:0", 0),
    ],
)
def test_a_set_variable_is_the_sum_of_its_pairs(config, num_bytes):
    """CUBLAS_WORKSPACE_CONFIG adds size in KiB times count over its pairs, on every card."""
    environment = {"CUBLAS_WORKSPACE_CONFIG": config}

    assert num_bytes == configured_bytes(config)
    assert num_bytes == workspaces((9, 0), "2.11.0", environment).cublas_bytes


@pytest.mark.parametrize("config", ["4096:8", ":4096", ":4096:8:", ":-1:8", "lots", ":4 :8"])
def test_a_malformed_variable_is_refused(config):
    """A configuration that is no list of pairs is shown, with a right one."""
    with pytest.raises(BadInputError, match="CUBLAS_WORKSPACE_CONFIG="):
        configured_bytes(config)


@pytest.mark.parametrize(
    ("release", "environment", "lt_bytes", "kept"),
    [
        ("2.11.0", {}, 1_048_576, True),
        ("2.11.0", {"CUBLASLT_WORKSPACE_SIZE": "4096"}, 4_194_304, True),
        ("2.11.0", {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1"}, 0, True),
        ("2.12.0", {}, 0, True),
        ("2.14.0", {}, 0, True),
        ("2.15.0", {}, 1_048_576, False),
        ("2.15.0", {"TORCH_CUBLAS_WORKSPACE_CACHE": "1"}, 1_048_576, True),
    ],
)
def test_cublaslt_has_its_own_or_shares(release, environment, lt_bytes, kept):
    """1 MiB of its own to 2.11 and from 2.15, cuBLAS's between; kept until 2.15."""
    answer = workspaces((8, 0), release, environment)

    assert (lt_bytes, kept) == (answer.lt_bytes, answer.kept)


def test_a_size_or_version_that_is_none_is_refused():
    """What cannot be read is named, never taken for a default."""
    with pytest.raises(BadInputError, match="CUBLASLT_WORKSPACE_SIZE='1MiB'"):
        workspaces((8, 0), "2.11.0", {"CUBLASLT_WORKSPACE_SIZE": "1MiB"})
    with pytest.raises(BadInputError, match="'nightly' is not a version"):
        workspaces((8, 0), "nightly", {})
