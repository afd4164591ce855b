"""What every test starts from: a scrubbed environment, fixed seeds, no window, GPU tests said."""

import os
import random
import sys
import tempfile

import pytest

# Whatever is set in the shell of whoever runs the tests must not decide what they see.
_PREFIXES = ("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "PYTORCH_", "TORCH_", "MEMPLAN_")
# What a user sets to have the tests run on a checkout of the official repository.
_KEPT = {"MEMPLAN_OFFICIAL_CHECKOUT"}
_NAMES = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "WORLD_SIZE", "RANK", "LOCAL_RANK"}
_CACHE = tempfile.TemporaryDirectory(prefix="memplan-tests-")
_SEED = 20240131

# Before any test module is imported: libraries read some of these when they load.
for _name in list(os.environ):
    if _name not in _KEPT and (_name.startswith(_PREFIXES) or _name in _NAMES):
        del os.environ[_name]
os.environ["MPLBACKEND"] = "Agg"
os.environ["XDG_CACHE_HOME"] = os.environ["XDG_DATA_HOME"] = _CACHE.name


@pytest.fixture(autouse=True)
def _clean_environment():
    """Give each test the environment that the first one had, whatever a test before it left."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _seeded():
    """Seed the generators; torch's and numpy's only where they have been imported."""
    random.seed(_SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(_SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(_SEED)


def pytest_collection_modifyitems(items):
    """Skip what needs a card where there is none, with a reason that `-ra` prints."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        reason = "NEEDS AN NVIDIA CARD: its results come in as recordings"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_unconfigure():
    """Remove the tests' cache folder."""
    _CACHE.cleanup()
