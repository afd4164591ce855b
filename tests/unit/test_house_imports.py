"""The rooms of the house and which of them may import which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = {
    "_version", "acceptance", "answer", "answers", "blocks", "bounds", "capabilities",
    "click_options", "convolution", "errors", "family", "history_frames", "host_memory",
    "inference", "lean", "parallel", "plan_answers", "processes", "registry", "script_answer",
    "spec", "spec_changes", "tape", "units", "workload",
}  # fmt: skip
# Each room, and the rooms it may import besides itself and the shared files.
ROOMS = {
    "files": set(),
    "launches": set(),
    "shared": {"files", "launches"},
    # A card is described to a phantom, and cuDNN is asked on one.
    "device": {"phantom"},
    "phantom": {"device"},
    "recording": {"device", "phantom"},
    "step": set(),
    "trace": {"device", "step"},
    "evaluation": {"device"},
    "fit": {"device", "evaluation"},
    # Planner and trainer are handed a recorder.
    "planner": {"device", "evaluation", "fit"},
    "training": {"device", "evaluation", "fit", "planner", "step"},
    "trainers": {"device", "phantom", "step", "training"},
    "present": set(),
    "report": {"present"},
    # Colours of bands are the report's.
    "html": {"present", "report"},
    "cli": {
        "device",
        "evaluation",
        "recording",
        "step",
        "trace",
        "fit",
        "planner",
        "training",
        "report",
        "html",
        "present",
        "advise",
    },
    # `memplan/__init__.py` counts as this room, and names what people import.
    "advise": {
        "device",
        "evaluation",
        "recording",
        "step",
        "trace",
        "fit",
        "planner",
        "training",
        "present",
        "report",
        "html",
        "trainers",
    },
}
# What runs when it is imported: the command, and what the server of processes begins with.
PROGRAMS = {"memplan.__main__", "memplan.advise.preload"}
MAY_IMPORT_TORCH = {"step", "trace", "training", "trainers", "recording"}
FOR_MODELS = {
    "memplan.workload", "memplan.capabilities", "memplan.family", "memplan.errors", "memplan.units",
    "memplan.inference",
    "memplan.processes", "memplan.files", "memplan.files.source", "memplan.files.torch_files",
    "memplan.files.yaml_text", "memplan.files.structures", "memplan.files.archives",
    "memplan.files.writing",
}  # fmt: skip


def _modules(folder):
    """Return each file below a folder with its dotted name."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _room(module):
    """Return the room of a dotted name within memplan."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "advise":
        return "advise"
    return "shared" if parts[1] in SHARED else parts[1]


def _targets(node):
    """Return what an import statement imports, names of a package as modules of their own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        return ["." * node.level + (node.module or "")]
    submodules = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if _is_module(name) else node.module for name in submodules]


def _is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _imports(path):
    """Return everything a file imports, wherever in the file."""
    tree = ast.parse(path.read_text())
    return {target for node in ast.walk(tree) for target in _targets(node)}


def _is_for_typing(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports_when_loaded(path):
    """Return what a file imports when it is itself imported."""
    found, queue = set(), list(ast.parse(path.read_text()).body)
    while queue:
        node = queue.pop()
        found.update(_targets(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        skipped = node.body if _is_for_typing(node) else []
        queue += [child for child in ast.iter_child_nodes(node) if child not in skipped]
    return found


def test_every_package_is_a_room_named_here():
    """No folder of memplan stands outside the directions that the tests below hold."""
    folders = {path.parent.name for path in (ROOT / "memplan").glob("*/__init__.py")}

    assert set(ROOMS) - {"shared"} == folders


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    """Arrows point one way: cli -> report, train, planner -> fit -> trace -> device -> shared."""
    allowed = ROOMS[room] | {room, "shared", "files", "launches"}
    wrong = [
        (module, target)
        for module, path in _modules("memplan")
        if _room(module) == room
        for target in _imports(path)
        if target.split(".")[0] == "memplan"
        # The package itself holds nothing but names of other rooms, and the version.
        and _room(target) not in allowed
    ]

    assert [] == wrong


def test_the_tool_knows_no_model():
    """Nothing in memplan imports memplan_models: workloads are found through entry points."""
    wrong = [
        (module, target)
        for module, path in _modules("memplan")
        for target in _imports(path)
        if target.split(".")[0] in {"memplan_models", "models"}
    ]

    assert [] == wrong


def test_the_models_know_the_workload_interface_and_nothing_else_of_the_tool():
    """Files of models/ import memplan.workload, errors, units, processes, and each other."""
    wrong = [
        (module, target)
        for module, path in _modules("models")
        for target in _imports(path)
        if target.split(".")[0] in {"memplan", "memplan_models", "models"}
        and target not in FOR_MODELS
    ]

    assert [] == wrong


def _named(module, path, node):
    """Return the modules of this repository that an import statement names, with their packages."""
    if isinstance(node, ast.ImportFrom) and node.level:
        package = module.split(".")[: None if path.name == "__init__.py" else -1]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        absolute = ast.ImportFrom(base, node.names, 0)
    else:
        absolute = node
    for target in _targets(absolute):
        parts = target.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _graph():
    """Return what each module imports anywhere in it, the packages that hold it left out."""
    graph = {}
    for module, path in [*_modules("memplan"), *_modules("models")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        named = {name for node in nodes for name in _named(module, path, node)}
        graph[module] = {name for name in named if not f"{module}.".startswith(f"{name}.")}
    return {module: named & graph.keys() for module, named in graph.items()}


def test_no_module_imports_itself_by_way_of_others():
    """There is no circle, also not of imports that run late or are for typing only."""
    graph = _graph()

    assert "memplan.files" in graph["models.yolo_data.scan"]
    assert "models.yolo_data.labels" in graph["models.yolo_data.scan"]
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("package", "below"),
    [("yolo_data", {"detection_metrics"}), ("detection_metrics", set())],
)
def test_data_and_metrics_know_no_network(package, below):
    """What reads data and what judges detections serve any family."""
    named = {
        name.split(".")[1]
        for module, names in _graph().items()
        if module.startswith(f"models.{package}")
        for name in names
        if name.startswith("models.")
    }

    assert below == named - {package}


def test_torch_is_loaded_by_the_recorder_and_the_trainer_only():
    """Other rooms import torch late or never; snapshot files are read without it."""
    wrong = [
        module
        for module, path in _modules("memplan")
        if _room(module) not in MAY_IMPORT_TORCH or path.name.startswith("snapshot")
        for target in _imports_when_loaded(path)
        if target.split(".")[0] in {"torch", "torchvision"}
    ]

    assert [] == wrong


def _loads_torch(code):
    """Return the exit code's meaning: whether running `code` loaded torch, in a new process."""
    ending = "\nimport sys; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code + ending]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1] == "True"


def test_importing_memplan_does_not_load_torch():
    """`import memplan` takes milliseconds, and works where torch is broken."""
    assert not _loads_torch("import memplan")


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - MAY_IMPORT_TORCH))
def test_a_room_without_torch_loads_without_torch(room):
    """Simulator, fit, planner, answers and reports run on a machine that has no torch."""
    names = [name for name, _ in _modules("memplan") if _room(name) == room]
    names = [name for name in names if name not in PROGRAMS]

    assert names
    assert not _loads_torch("\n".join(f"import {name}" for name in names))


def test_the_parent_of_a_watched_script_does_not_load_torch():
    """`memplan run` itself starts at once; torch is the script's business."""
    assert not _loads_torch("import memplan.cli.run")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["gpus"]])
def test_commands_that_record_nothing_do_not_load_torch(arguments):
    """Help, version and the catalogue answer at once."""
    code = (
        "import sys; from memplan.cli import main\n"
        f"sys.argv = ['memplan', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )

    assert not _loads_torch(code)
