"""A user's checkout is imported by itself, run as it is, and refused in one line where it fails.

The test of the real repository runs only where the environment variable MEMPLAN_OFFICIAL_CHECKOUT
names a checkout of it, and the tests' environment is not scrubbed:

    MEMPLAN_OFFICIAL_CHECKOUT=PATH pytest --noconftest tests/unit/test_official_checkout.py -k real
"""

import logging
import os
import sys
import types
from pathlib import Path

import official_checkout
import pytest
import torch

from memplan import tape as tapes
from memplan.capabilities import reader_of_data
from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.trace.record import record

# The indices of every section but the one that only DistributedDataParallel adds.
ONE_DEVICE = set(range(len(tapes.SECTIONS))) - {tapes.SECTIONS.index("bucket_rebuild")}
REAL = os.environ.get("MEMPLAN_OFFICIAL_CHECKOUT")


@pytest.fixture
def checkout(tmp_path):
    """A tiny checkout of our own."""
    return official_checkout.write(tmp_path / "yolov9")


def _make(path, **arguments):
    settings = {"image_size": 64, "num_classes": 3, "objects_per_image": 2, **arguments}
    return make_workload(f"official:{path}", settings)


def _sizes(tape, section, category):
    events = tape.events
    rows = (events.kind == tapes.ALLOCATE) & (events.section == tapes.SECTIONS.index(section))
    rows &= tape.block_category[events.block] == tapes.CATEGORY_INDEX[category]
    return events.requested_bytes[rows].tolist()


@pytest.mark.parametrize("cfg", ["gelan-c", "yolov9-c"])
def test_a_life_of_the_checkouts_own_model_and_loss_is_recorded(checkout, cfg):
    """Every section is there, and every parameter that the loss reaches has a gradient."""
    workload = _make(checkout, cfg=cfg)
    tape = record(workload, 2)
    model = workload.build_model()
    reached = [
        p for name, p in model.named_parameters() if cfg == "gelan-c" or "outs.0" not in name
    ]

    assert ONE_DEVICE == {*tape.events.section, *tape.operators.section}
    assert sum(p.numel() for p in model.parameters()) == tape.description.parameters
    assert sorted(p.nbytes for p in reached) == sorted(_sizes(tape, "micro_batch", "gradient"))
    assert "built" not in tape.description.workload
    assert f"official:{cfg}" == tape.description.workload


def test_the_loss_keeps_the_stated_positives(checkout):
    """Two images, two objects, seven positives each: 28 rows of 7 and of 4 numbers are kept."""
    tape = record(_make(checkout, positives_per_object=7), 2, StepSpec(precision="fp32"))
    kept = _sizes(tape, "micro_batch", "activation")

    assert 28 * 7 * 4 in kept
    assert 28 * 4 * 4 in kept


def test_validation_runs_in_half_at_twice_the_batch(checkout):
    """Images are halved, weights too, and a detection of each image comes out."""
    tape = record(_make(checkout), 2)
    side = 96
    images = 4 * 3 * side * side

    assert {images, 2 * images} <= set(_sizes(tape, "validation", "input"))
    names = {
        tape.operator_names[name]
        for name, section in zip(tape.operators.name, tape.operators.section, strict=True)
        if tapes.SECTIONS[section] == "validation"
    }
    assert "torchvision.nms.default" in names


def test_a_single_branch_computes_its_loss_in_validation(checkout):
    """The single trainer's validation finds positives; the dual one's does not."""

    def finds(cfg):
        tape = record(_make(checkout, cfg=cfg), 2)
        return any(
            tape.operator_names[name] == "aten.masked_select.default"
            and tapes.SECTIONS[section] == "validation"
            for name, section in zip(tape.operators.name, tape.operators.section, strict=True)
        )

    assert finds("gelan-c")
    assert not finds("yolov9-c")


def test_more_objects_need_more_memory(checkout):
    """The fullest image sets the size of the padded boxes."""
    few, many = (
        sum(_sizes(record(_make(checkout, objects_per_image=n), 2), "micro_batch", "temporary"))
        for n in (2, 30)
    )

    assert few < many


def test_the_import_leaves_the_process_as_it_was(checkout, caplog):
    """Modules, path, environment and number formats are put back; nothing is logged."""
    own = types.ModuleType("utils")
    sys.modules["utils"] = own
    path, environment, modules = list(sys.path), dict(os.environ), set(sys.modules)
    width = repr(torch.arange(1000.0))
    try:
        with caplog.at_level(logging.WARNING):
            _make(checkout).build_model()

        assert own is sys.modules["utils"]
        assert path == sys.path
        assert environment == dict(os.environ)
        assert not {m for m in set(sys.modules) - modules if m.partition(".")[0] == "models"}
        assert not {"seaborn", "IPython"} & (set(sys.modules) - modules) or "seaborn" in modules
        assert width == repr(torch.arange(1000.0))
        assert [] == caplog.records
    finally:
        del sys.modules["utils"]
    assert not list(checkout.rglob("__pycache__"))


def test_two_checkouts_do_not_mix(checkout, tmp_path):
    """Each workload runs the files of its own folder."""
    other = official_checkout.write(tmp_path / "other")
    yolo = other / "models" / "yolo.py"
    yolo.write_text(yolo.read_text().replace("Conv(width, width), ", ""))
    one, two = _make(checkout), _make(other)

    assert 3 == len(one.build_model().model)
    assert 2 == len(two.build_model().model)


def test_settings_name_cfg_and_hyp(checkout):
    """`cfg` and `hyp` are names inside the checkout, or paths."""
    workload = _make(checkout, cfg="models/detect/gelan-c.yaml", hyp="mine")

    assert "official:gelan-c" == workload.name
    assert 1.5 == workload.hyperparameters["box"]
    assert 7.5 == _make(checkout).hyperparameters["box"]
    assert (
        "official:yolov9-c"
        == _make(checkout, cfg=str(workload.cfg_path.parent / "yolov9-c.yaml")).name
    )


def _without(file):
    return lambda path: (path / file).unlink()


def _with(file, text):
    return lambda path: (path / file).write_text(text)


@pytest.mark.parametrize(
    ("change", "arguments", "kind", "words"),
    [
        (_without("utils/general.py"), {}, BadInputError, r"utils/general\.py is missing"),
        (_with("models/yolo.py", "def ("), {}, BadInputError, "cannot be imported .SyntaxError"),
        (
            _with("utils/torch_utils.py", "import no_such_library"),
            {},
            BadInputError,
            "No module named 'no_such_library'",
        ),
        (_with("utils/general.py", "raise SystemExit(3)"), {}, BadInputError, "SystemExit: 3"),
        (_without("data/hyps/mine.yaml"), {"hyp": "mine"}, UnknownNameError, "has: hyp.scratch"),
        (
            _with("data/hyps/mine.yaml", "!!python/name:os.system"),
            {"hyp": "mine"},
            BadInputError,
            "YAML",
        ),
        (_with("data/hyps/mine.yaml", "- 1"), {"hyp": "mine"}, BadInputError, "no table"),
        (lambda _: None, {"cfg": "gelan-x"}, UnknownNameError, "Did you mean 'gelan-c'"),
        (lambda _: None, {"cfg": "headless"}, BadInputError, "ends with no head"),
        (lambda _: None, {"depth": 1}, UsageError, "takes no 'depth'"),
        (lambda _: None, {"image_size": 100}, UsageError, "Nearest: 96"),
        (lambda _: None, {"num_classes": 0}, UsageError, "num_classes 0 is below 1"),
        (lambda _: None, {"positives_per_object": 0}, UsageError, "positives_per_object 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(checkout, change, arguments, kind, words):
    """Each way to miss names what is wrong."""
    change(checkout)

    with pytest.raises(kind, match=words) as caught:
        _make(checkout, **arguments)

    assert 1 == len(str(caught.value).splitlines())


def test_a_path_that_is_none_is_refused(tmp_path):
    """A folder that does not exist, and one that holds something else."""
    with pytest.raises(BadInputError, match="no such folder"):
        _make(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="no checkout of the official repository"):
        _make(tmp_path)


def test_an_optimizer_that_the_checkout_lacks_is_refused(checkout):
    """The checkout's own function decides."""
    settings = StepSpec(optimizer="Adagrad")

    with pytest.raises(UnknownNameError, match="This checkout knows"):
        record(_make(checkout), 2, settings)


def test_training_data_is_not_read(checkout):
    """The trainer of memplan does not run a checkout."""
    with pytest.raises(BadInputError, match="reads no data sets"):
        reader_of_data(_make(checkout), Path("data.yaml"))


@pytest.mark.skipif(REAL is None, reason="MEMPLAN_OFFICIAL_CHECKOUT names no checkout")
@pytest.mark.parametrize(("cfg", "parameters"), [("yolov9-t", 3_717_680), ("gelan-t", None)])
def test_the_real_repository_is_recorded(cfg, parameters):
    """A checkout of the official repository has its sections, and the network's parameters."""
    tape = record(make_workload(f"official:{REAL}", {"cfg": cfg, "image_size": 256}), 2)

    assert ONE_DEVICE == {*tape.events.section, *tape.operators.section}
    assert parameters in {None, tape.description.parameters}
