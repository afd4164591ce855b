"""Weights from checkpoint files, read without running any code that the files carry.

Official checkpoints pickle whole modules; here only tensors and plain containers come to life,
every module class becomes an inert stand-in that keeps its attributes, and any other name is
refused. `memplan.files.torch_files` does the reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from memplan.errors import BadInputError
from memplan.files import Source
from memplan.files.torch_files import (
    MOST_BYTES,
    Inert,
    RefusedError,
    read_torch_file,
    refuse_all,
)

_SLOTS = ("ema", "model", "state_dict")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a checkpoint filled and what it did not."""

    slot: str
    """Where the weights lay: `ema`, `model`, `state_dict`, or `file` for a bare state_dict."""
    matched: tuple[str, ...]
    """Entries loaded: equal name and shape."""
    missing: tuple[str, ...]
    """Entries of the network that the file lacks."""
    unexpected: tuple[str, ...]
    """Entries of the file that the network lacks."""
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Entries of another shape: name, the file's shape, the network's shape."""

    @property
    def total(self) -> int:
        """Entries of the network."""
        return len(self.matched) + len(self.missing) + len(self.reshaped)

    @property
    def fraction(self) -> float:
        """How much of the network was filled, 0 to 1."""
        return len(self.matched) / max(self.total, 1)

    def __str__(self) -> str:
        """Return the report as a sentence or two; what did not match is named."""
        sentence = f"Loaded {len(self.matched)} of {self.total} entries from {self.slot!r}."
        mismatches = self.mismatches()
        return f"{sentence} {mismatches}" if mismatches else sentence

    def mismatches(self) -> str:
        """Return what did not match, by name as far as a line has room; empty if all did."""
        reshaped = [
            f"{name} is {_shape(file)} and not {_shape(net)}" for name, file, net in self.reshaped
        ]
        kinds = (
            ("missing", list(self.missing)),
            ("of another shape", reshaped),
            ("unexpected", list(self.unexpected)),
        )
        parts = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names]
        return f"Not matched: {'; '.join(parts)}." if parts else ""


_FEW_NAMES = 3  # in a line


def _few(names: list[str]) -> str:
    rest = len(names) - _FEW_NAMES
    return ", ".join(names[:_FEW_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def load_weights(net: nn.Module, path: str | Path, prefer: str = "ema") -> LoadReport:
    """Fill a network with the entries of a checkpoint that fit by name and shape.

    Values take the network's dtype and device; entries that do not fit stay as they are.

    Args:
        net: the network.
        path: an official checkpoint (training, stripped, converted), one of memplan's own, or a
            bare state_dict.
        prefer: `ema` or `model`: the weights to take when the file has both. The official
            `--weights` takes `model`.

    Raises:
        BadInputError: the file cannot be read, is refused as unsafe, or not one entry fits.
    """
    content = read_checkpoint(path)
    if isinstance(content, Mapping) and content.get("fused"):
        raise BadInputError(
            f"{path} is fused: its norms are merged into the convolutions, so it cannot be trained "
            "or evaluated here. Give the checkpoint that it was exported from, or export --no-fuse."
        )
    return load_state(net, *state_of_checkpoint(content, path, prefer), path)


def load_state(net: nn.Module, slot: str, state: dict[str, Tensor], path: str | Path) -> LoadReport:
    """Fill a network with the entries that fit; `slot` and `path` are for the report.

    Raises:
        BadInputError: not one entry fits.
    """
    own = net.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise BadInputError(
            f"None of the {len(state)} entries of {path} fits the model. "
            "Check that --cfg names the architecture the file was made with."
        )
    net.load_state_dict(fits, strict=False)
    return LoadReport(
        slot=slot,
        matched=tuple(fits),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        reshaped=tuple(
            (k, tuple(v.shape), tuple(own[k].shape))
            for k, v in state.items()
            if k in own and k not in fits
        ),
    )


def state_of_checkpoint(
    content: Any, path: str | Path, prefer: str = "ema"
) -> tuple[str, dict[str, Tensor]]:
    """Return the slot and the state_dict in what `read_checkpoint` returned.

    Raises:
        BadInputError: it holds no weights.
    """
    if not isinstance(content, Mapping):
        content = {"model": content}
    for slot in sorted(_SLOTS, key=lambda s: s != prefer):
        state = _state_of(content.get(slot))
        if state:
            return slot, state
    state = _state_of(content)
    if state:
        return "file", state
    raise BadInputError(f"{path} holds no weights under {', '.join(_SLOTS)} and is no state_dict.")


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What a checkpoint says of its network besides the weights; None where it does not."""

    description: dict[str, Any] | None = None
    """The model description that an official checkpoint or an export carries."""
    cfg: str | None = None
    """The configuration's name or path, of memplan's own checkpoints."""
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    data: str | None = None
    """The `data.yaml` that memplan trained with."""


def facts_of(content: Any) -> CheckpointFacts:
    """Return what the content of a checkpoint, as `read_checkpoint` gives it, says of its network.

    Names of classes and descriptions are read as plain values; anything else is passed over.
    """
    if not isinstance(content, Mapping):
        content = {"model": content}
    options = content.get("options")
    if isinstance(options, Mapping):  # memplan's own
        classes = content.get("num_classes")
        return CheckpointFacts(
            cfg=str(options["cfg"]) if options.get("cfg") else None,
            num_classes=classes if isinstance(classes, int) else None,
            data=str(options["data"]) if options.get("data") else None,
        )
    model = next((content[s] for s in ("ema", "model") if content.get(s) is not None), None)
    attributes: Mapping[str, Any] = getattr(model, "__dict__", {})
    names = content.get("class_names", attributes.get("names"))
    description = content.get("description", attributes.get("yaml"))
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names)]
    is_described = isinstance(description, dict) and {"backbone", "head"} <= description.keys()
    return CheckpointFacts(
        description=dict(description) if is_described else None,
        num_classes=len(names) if names else None,
        class_names=tuple(map(str, names)) if names else None,
    )


def read_checkpoint(path: str | Path) -> Any:
    """Return the content of a checkpoint; pickled objects other than tensors are inert stubs.

    Raises:
        BadInputError: the file cannot be read, or names something outside the permitted list.
    """
    source = Source(
        path=Path(path),
        what="a PyTorch checkpoint",
        way_out="It may be truncated or older than the zip format of PyTorch 1.6; download or save "
        "it again.",
        most_bytes=MOST_BYTES,
    )
    try:
        return read_torch_file(source, _stand_in)
    except RefusedError as error:
        raise BadInputError(f"{path} is refused: {error}.") from None


# Names whose objects become stubs. Being inert they could be any names; a short list still says
# early and clearly that a file is not what it is taken for.
_STUB_MODULES = ("models.", "utils.", "torch.nn.modules.", "numpy.", "pathlib")
_STUB_NAMES = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("argparse", "Namespace"),
    ("torch", "device"),
    ("torch.torch_version", "TorchVersion"),  # what torch.__version__ is
}


def _stand_in(module: str, name: str) -> type[Inert]:
    """Return a stub class for a name that official checkpoints hold.

    Raises:
        RefusedError: the name is not permitted.
    """
    if (module, name) not in _STUB_NAMES and not f"{module}.".startswith(_STUB_MODULES):
        refuse_all(module, name)
    return type(name, (Inert,), {})


def _state_of(content: object) -> dict[str, Tensor]:
    """Return the tensors of a stubbed module or of a state_dict by name; empty if neither."""
    if isinstance(content, Mapping):
        return {k: v for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str)}
    state: dict[str, Tensor] = {}
    if isinstance(content, Inert):
        _walk(content, "", state, depth=0)
    return state


_MOST_DEPTH = 50  # of modules in modules; a file may name a module as its own child


def _walk(module: object, prefix: str, state: dict[str, Tensor], *, depth: int) -> None:
    """Add the parameters and persistent buffers of a stubbed module and of its children."""
    if depth > _MOST_DEPTH or len(state) > _MOST_ENTRIES:
        raise BadInputError(
            "The checkpoint's modules are nested without end, so its weights cannot be taken."
        )
    hidden = _attribute(module, "_non_persistent_buffers_set", set)
    for kind in ("_parameters", "_buffers"):
        for name, value in _attribute(module, kind, Mapping).items():
            if isinstance(value, Tensor) and name not in hidden:
                state[f"{prefix}{name}"] = value
    for name, child in _attribute(module, "_modules", Mapping).items():
        _walk(child, f"{prefix}{name}.", state, depth=depth + 1)


_MOST_ENTRIES = 1_000_000


def _attribute(module: object, name: str, kind: type) -> Any:
    """Return a container that a stubbed module has under a name; an empty one where it has none."""
    value = getattr(module, "__dict__", {}).get(name)
    return value if isinstance(value, kind) else {}
