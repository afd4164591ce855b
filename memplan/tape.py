"""The tape: every allocation and free of a training's life on a device, in order.

A tape needs no torch to be read. Sizes that depend on the device (convolution and matrix-library
workspace) are kept as questions, answered when the tape is replayed on a card.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from memplan.convolution import ConvolutionProblem
from memplan.errors import BadTapeError, UsageError
from memplan.files import Source, converted, decoded, replaced
from memplan.files.archives import CheckedArchive, DamagedError, read_npz
from memplan.files.structures import NotStructuredError, flattened
from memplan.launches import BUFFERS, LAUNCHES, AnyLaunch
from memplan.spec import StepSpec

SCHEMA = "memplan.tape/2"

# Event kinds, as in the replay of `memplan.device`.
ALLOCATE = 0
FREE = 1
EMPTY_CACHE = 2
SCRATCH = 3  # allocated inside an operator and freed before it returns
KEEP_GRADIENT = 4  # the block becomes a leaf's gradient; added to one that is there already
KEEP_COPY = 5  # the same for a block that was only made because there was no gradient yet

# What an event asks: its bytes are known, or the device's to answer.
QUESTIONS = ("known", "matrix_workspace", "light_matrix_workspace", "convolution", *BUFFERS)
KNOWN, MATRIX_WORKSPACE, LIGHT_MATRIX_WORKSPACE, CONVOLUTION = range(4)
FIRST_BUFFER = 4
"""From here on, the buffers of launches."""
_LAUNCH_OF = {name: kind for kind in LAUNCHES for name in kind.BUFFERS}

AMPERE = (8, 0)
"""The first compute capability with flash attention, for which steps are recorded by default."""

CUDNN_ATTENTION = ((9, 0), (10, 0))
"""Compute capabilities on which attention in half precision goes to cuDNN.

Source: `check_prefer_cudnn_attention` in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp,
PyTorch 2.11.
"""

CATEGORIES = (
    "parameter",
    "optimizer_state",
    "gradient",
    "input",
    "activation",
    "workspace",
    "temporary",
)
CATEGORY_INDEX = {name: index for index, name in enumerate(CATEGORIES)}

# What is recorded, once each, in this order. A life is put together from these sections.
SECTIONS = (
    "build",
    "micro_batch",
    "first_update",
    "update",
    "release",
    "average",
    "validation",
    "checkpoint",
    "crowded_micro_batch",
    "bucket_rebuild",
)
# Parts of a training's life, in the order a run goes through them.
PERIODS = (
    "build",
    "first_step",
    "accumulation_step",
    "steady_step",
    "validation",
    "checkpoint",
    "inference",
)
# What happens inside a section.
PHASES = ("transfer", "forward", "backward", "optimizer_step", "average", "predict", "save")

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Operators:
    """One row an operator that ran, as columns of equal length."""

    name: Int32
    """Index into `Tape.operator_names`."""
    module: Int32
    """Index into `Tape.modules`, -1 outside any module."""
    section: Int8
    """Index into `SECTIONS`."""
    phase: Int8
    """Index into `PHASES`."""
    flops: Int64
    """Floating-point operations, a multiply-add counting two."""
    moved_bytes: Int64
    """Bytes read plus bytes written by the operator's tensors, each counted once."""
    line: Int32 | None = None
    """Index into `Tape.lines` of the model's source line that ran it, -1 where none did; None in
    tapes that do not tell."""


@dataclass(frozen=True)
class Events:
    """One row an event, as columns of equal length."""

    kind: Int8
    """ALLOCATE, FREE, EMPTY_CACHE, SCRATCH, KEEP_GRADIENT or KEEP_COPY."""
    block: Int32
    """Which allocation; an id is used for one allocation and its free."""
    requested_bytes: Int64
    """Bytes requested; 0 where `asks` asks the device."""
    asks: Int8
    """Index into `QUESTIONS`."""
    about: Int32
    """The question's subject: an index into `Tape.convolutions` for CONVOLUTION, into
    `Tape.launches` for a launch's buffer, 0 for the rest."""
    operator: Int32
    """Row in `Operators` during which it happened; a free belongs to the operator before it."""
    section: Int8
    """Index into `SECTIONS`."""


@dataclass(frozen=True)
class ModuleRecord:
    """A module of the model and what its forward pass leaves behind."""

    path: str
    """Dotted path; the model itself is the empty string."""
    type: str
    """Class name."""
    output_shape: tuple[int, ...]
    """Shape of its first output tensor; empty when it ran never or returned no tensor."""


@dataclass(frozen=True)
class TensorKind:
    """What a block holds."""

    shape: tuple[int, ...]
    dtype: str
    """As PyTorch names it, such as `float16`."""

    @property
    def words(self) -> str:
        """As people read it, such as `16 x 64 x 56 x 56, float16`."""
        return f"{' x '.join(map(str, self.shape)) or 'a number'}, {self.dtype}"


@dataclass(frozen=True)
class Description:
    """What was recorded, as a reader of the file must know it."""

    workload: str
    micro_batch_size: int
    image_size: int
    spec: StepSpec
    """How the step ran."""
    parameters: int
    """Number of parameters, not bytes."""
    objects_per_image: int
    """Objects in every image of the recorded batch; 0 where the notion does not apply."""
    origin: str
    """`predicted` for a recording made with no device, `measured` from a real one."""
    versions: dict[str, str] = field(default_factory=dict)
    cublas_workspace_config: str | None = None
    """What training sets CUBLAS_WORKSPACE_CONFIG to; None leaves the machine's."""
    crowded_objects_per_image: int = 0
    """Objects in every image of the section `crowded_micro_batch`; 0 where it was not recorded."""
    unknown_operators: dict[str, int] = field(default_factory=dict)
    """Operators for which no memory rule exists, and how often they ran."""
    compute_capability: tuple[int, int] = AMPERE
    """Of the cards it was recorded for, which decides the kernel of attention."""


def attention_kernels(capability: tuple[int, int]) -> str:
    """Return a name that is the same for cards on which attention runs the same operators."""
    if capability in CUDNN_ATTENTION:
        return "cuDNN of {}.{}".format(*capability)
    return "flash" if capability >= AMPERE else f"efficient of {capability[0]}.x"


@dataclass(frozen=True)
class Tape:
    """A recorded life of a training at one micro-batch size."""

    description: Description
    events: Events
    operators: Operators
    block_category: Int8
    """Index into `CATEGORIES`, by block id."""
    operator_names: tuple[str, ...]
    modules: tuple[ModuleRecord, ...]
    convolutions: tuple[ConvolutionProblem, ...]
    launches: tuple[AnyLaunch, ...] = ()
    lines: tuple[str, ...] = ()
    """`FILE:LINE function` of source lines that ran operators."""
    tensors: tuple[TensorKind, ...] = ()
    block_tensor: Int32 | None = None
    """Index into `tensors` by block id, -1 for scratch; None in tapes that do not tell."""

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.events.kind)

    def is_for(self, capability: tuple[int, int]) -> bool:
        """Return whether cards of a compute capability run the operators that were recorded."""
        if not any("dot_product" in name for name in self.operator_names):
            return True
        recorded = self.description.compute_capability
        return attention_kernels(recorded) == attention_kernels(capability)

    def line_of(self, operator: int) -> str:
        """Return the source line that ran an operator, empty where that is not known."""
        column = self.operators.line
        at = -1 if column is None or operator < 0 else int(column[operator])
        return self.lines[at] if at >= 0 else ""

    def tensor_of(self, block: int) -> TensorKind | None:
        """Return what a block holds, None where that is not known."""
        at = -1 if self.block_tensor is None else int(self.block_tensor[block])
        return self.tensors[at] if at >= 0 else None

    def save(self, path: Path) -> None:
        """Write the tape as a compressed archive of plain arrays and one JSON text.

        Source: numpy's `.npz` layout, read back with `allow_pickle=False`.
        """
        header = {
            "schema": SCHEMA,
            "description": flattened(self.description),
            "operator_names": self.operator_names,
            "modules": self.modules,
            "convolutions": self.convolutions,
            "launches": self.launches,
            "lines": self.lines,
            "tensors": self.tensors,
        }
        columns: dict[str, Any] = {f"events.{k}": v for k, v in vars(self.events).items()}
        columns |= {f"operators.{k}": v for k, v in vars(self.operators).items()}
        columns |= {"block_category": self.block_category, "block_tensor": self.block_tensor}
        columns = {name: column for name, column in columns.items() if column is not None}
        text = np.frombuffer(msgspec.json.encode(header), dtype=np.uint8)
        with replaced(path) as file:
            np.savez_compressed(file, header=text, **columns)


def is_tape(path: Path) -> bool:
    """Return whether the file looks like a saved tape rather than a PyTorch snapshot."""
    try:
        with _source(path).open() as file:
            if not zipfile.is_zipfile(file):
                return False
            archive = CheckedArchive(file, most_bytes=_MOST_BYTES, compressed=True)
            return "header.npy" in archive.names
    except (BadTapeError, DamagedError):
        return False


_MOST_BYTES = 1 << 30
"""More than any tape unpacks to: one of a million events takes 60 MB."""


def _source(path: Path) -> Source:
    return Source(
        path=path,
        what="a tape",
        way_out="Record it again.",
        missing="`memplan probe --output` writes one.",
        most_bytes=_MOST_BYTES,
        error=BadTapeError,
    )


@dataclass(frozen=True)
class _Header:
    """What stands beside the columns, as JSON."""

    description: Description
    operator_names: tuple[str, ...]
    modules: tuple[ModuleRecord, ...]
    convolutions: tuple[ConvolutionProblem, ...]
    launches: tuple[AnyLaunch, ...] = ()
    lines: tuple[str, ...] = ()
    tensors: tuple[TensorKind, ...] = ()


def load_tape(path: Path) -> Tape:
    """Return a saved tape, every index in it within what it points into.

    Raises:
        BadTapeError: the file is missing, damaged, not a tape, or of an unknown schema version.
    """
    source = _source(path)
    columns = read_npz(source, most_bytes=_MOST_BYTES)
    header = _header(source, columns)
    try:
        tape = Tape(
            description=header.description,
            events=Events(**_part(columns, "events.")),
            operators=Operators(**_part(columns, "operators.")),
            block_category=columns["block_category"],
            operator_names=header.operator_names,
            modules=header.modules,
            convolutions=header.convolutions,
            launches=header.launches,
            lines=header.lines,
            tensors=header.tensors,
            block_tensor=columns.get("block_tensor"),
        )
    except (TypeError, KeyError) as error:
        raise source.bad(f"a column is missing or unknown ({error})") from None
    for problem in _faults(tape):
        raise source.bad(problem)
    return tape


def _header(source: Source, columns: dict[str, npt.NDArray[Any]]) -> _Header:
    if "header" not in columns:
        raise source.bad("it has no header")
    values = decoded(source, columns.pop("header").tobytes(), part="its header")
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise BadTapeError(
            f"{source.shown} has schema {schema!r}, but this memplan reads {SCHEMA!r}. "
            "Record it again, or use the memplan that wrote it."
        )
    try:
        return converted({k: v for k, v in values.items() if k != "schema"}, _Header)
    except (NotStructuredError, UsageError) as error:
        raise source.bad(error) from None


def _part(columns: dict[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {
        name.removeprefix(prefix): column
        for name, column in columns.items()
        if name.startswith(prefix)
    }


def _faults(tape: Tape) -> Iterator[str]:
    """Yield what in the columns points outside what it points into."""
    events, operators = tape.events, tape.operators
    of_blocks = {"block_category": tape.block_category, "block_tensor": tape.block_tensor}
    for table in (vars(events), vars(operators), of_blocks):
        columns: list[npt.NDArray[Any]] = [one for one in table.values() if one is not None]
        if any(column.ndim != 1 or column.dtype.kind not in "iu" for column in columns):
            yield "a column is no list of whole numbers"
            return
        if len({len(column) for column in columns}) != 1:
            yield "its columns are of several lengths"
            return
    ranges: tuple[tuple[str, npt.NDArray[Any] | None, int, int], ...] = (
        ("events.kind", events.kind, ALLOCATE, KEEP_COPY),
        ("events.block", events.block, 0, len(tape.block_category) - 1),
        ("events.requested_bytes", events.requested_bytes, 0, _MOST_REQUESTED_BYTES),
        ("events.asks", events.asks, KNOWN, len(QUESTIONS) - 1),
        ("events.operator", events.operator, -1, len(operators.name) - 1),
        ("events.section", events.section, 0, len(SECTIONS) - 1),
        ("operators.name", operators.name, 0, len(tape.operator_names) - 1),
        ("operators.module", operators.module, -1, len(tape.modules) - 1),
        ("operators.section", operators.section, 0, len(SECTIONS) - 1),
        ("operators.phase", operators.phase, 0, len(PHASES) - 1),
        ("operators.flops", operators.flops, 0, _MOST_REQUESTED_BYTES),
        ("operators.moved_bytes", operators.moved_bytes, 0, _MOST_REQUESTED_BYTES),
        ("operators.line", operators.line, -1, len(tape.lines) - 1),
        ("block_category", tape.block_category, 0, len(CATEGORIES) - 1),
        ("block_tensor", tape.block_tensor, -1, len(tape.tensors) - 1),
    )
    for name, column, least, most in ranges:
        if column is None or not len(column):
            continue
        if not least <= int(column.min()) <= int(column.max()) <= most:
            yield f"{name} has a number outside {least} to {most}"
            return
    yield from _wrong_questions(tape)


def _wrong_questions(tape: Tape) -> Iterator[str]:
    """Yield the kinds of question whose subject is something else than they are of."""
    events = tape.events
    for number in np.unique(events.asks).tolist():
        about = np.unique(events.about[events.asks == number])
        kind = _LAUNCH_OF.get(QUESTIONS[number])
        if kind is not None:
            known = np.array([isinstance(one, kind) for one in tape.launches], dtype=np.bool_)
        else:
            known = np.ones(len(tape.convolutions) if number == CONVOLUTION else 1, dtype=np.bool_)
        if about[0] < 0 or about[-1] >= len(known) or not known[about].all():
            yield f"events.about names no subject of {QUESTIONS[number]!r}"


_MOST_REQUESTED_BYTES = 1 << 60
