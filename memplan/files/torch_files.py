"""PyTorch's checkpoint files, read without running any code that they carry.

Such a file is a zip of one pickle and the tensors' bytes. Only tensors and plain containers come
to life; every other name in the pickle is the caller's to stand in for, or refused. What is given
out agrees with the file's checksums to the last bit, which `torch.load` does not look at.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from memplan.errors import is_out_of_memory
from memplan.files.archives import CheckedArchive, DamagedError
from memplan.files.pickles import BadPickleError, check_pickle

if TYPE_CHECKING:
    import torch

    from memplan.files.source import Source

MOST_BYTES = 1 << 40
"""No file is refused for its size alone: what is read is never more than the file has."""
_MOST_PICKLE_BYTES = 256 << 20
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

StandIn = Callable[[str, str], Any]


class RefusedError(ValueError):
    """A file that names what is not permitted; the message is a clause that says what."""


def refuse_all(module: str, name: str) -> NoReturn:
    """Stand in for nothing.

    Raises:
        RefusedError: always.
    """
    raise RefusedError(
        f"its pickle names {module}.{name}, which is no part of a checkpoint and might run code. "
        "Do not load this file elsewhere either unless you trust its source"
    )


def read_torch_file(source: Source, stand_in: StandIn = refuse_all) -> Any:
    """Return the content of a file that `torch.save` wrote, tensors on the CPU.

    Args:
        source: the file; in the zip format of PyTorch 1.6 and later.
        stand_in: given module and name of what is neither tensor nor plain container, returns a
            class to use in its place, or raises RefusedError.

    Raises:
        MemplanError: of the source's class; the file is damaged, or no such file.
        RefusedError: the file names what is not permitted.
    """
    with source.open() as file:
        try:
            archive = CheckedArchive(file, most_bytes=MOST_BYTES, compressed=False)
            content = _Unpickler(archive, stand_in).load()
            archive.check_rest()
        except (RefusedError, MemoryError):
            raise
        except (DamagedError, BadPickleError) as error:
            raise source.bad(error) from None
        except Exception as error:
            # A damaged pickle can raise nearly anything; for a whole one there may be no room.
            if is_out_of_memory(error):
                raise
            raise source.bad(str(error) or type(error).__name__) from None
    return content


def _prefix(archive: CheckedArchive) -> str:
    found = [name for name in archive.names if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise DamagedError("it holds no data.pkl, as PyTorch's files do")
    return found[0].removesuffix("data.pkl")


class Inert:
    """Base of what stands in for pickled objects: keeps its attributes, does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Leave the arguments alone."""

    def __setstate__(self, state: object) -> None:
        """Take attributes; a state of (dict, slots) is how pickle writes classes with slots."""
        first = state[0] if isinstance(state, tuple) and state else state
        if isinstance(first, dict):
            self.__dict__.update({k: v for k, v in first.items() if isinstance(k, str)})


class _Unpickler(pickle._Unpickler):  # noqa: SLF001 - the one in C cannot be told what to build
    """Reads the pickle of a checkpoint; storages are read when they are first named."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # noqa: SLF001

    def __init__(self, archive: CheckedArchive, stand_in: StandIn) -> None:
        self._prefix = _prefix(archive)
        name = f"{self._prefix}data.pkl"
        if archive.size(name) > _MOST_PICKLE_BYTES:
            raise DamagedError("its pickle is larger than any checkpoint's")
        content = archive.read(name)
        check_pickle(content)
        super().__init__(io.BytesIO(content))
        self._archive = archive
        self._stand_in = stand_in
        self._storages: dict[str, torch.Tensor] = {}
        byte_order = f"{self._prefix}byteorder"
        if byte_order in archive.names and archive.read(byte_order) != b"little":
            raise RefusedError("its tensors are big-endian. Save it on a little-endian machine")

    def load_build(self) -> None:
        """Give an object its state: stand-ins only, since a tensor's may be of any size."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        if isinstance(stack[-1], Inert):
            stack[-1].__setstate__(state)
        elif not isinstance(stack[-1], OrderedDict):  # whose state is the metadata of a module
            raise DamagedError(f"its pickle gives a state to a {type(stack[-1]).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Return the permitted object of a name, or what stands in for it."""
        import torch

        real = _REAL.get((module, name))
        if real is not None:
            return real
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if module == "torch" and name in _STORAGES:
            return StorageKind(_STORAGES[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return StorageKind("uint8")
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return self._stand_in(module, name)

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return the 1-D tensor over one storage's bytes."""
        import torch

        kind, key, _, num_elements = pid[1:]
        if not isinstance(kind, StorageKind) or not isinstance(key, str):
            raise DamagedError("its pickle names a storage that is none")
        dtype: torch.dtype = getattr(torch, kind.dtype)
        if key not in self._storages:
            self._storages[key] = self._read(f"{self._prefix}data/{key}")
        data = self._storages[key]
        if data.numel() != num_elements * dtype.itemsize:
            raise DamagedError(f"storage {key} has another size than it declares")
        return data.view(dtype)

    def _read(self, name: str) -> torch.Tensor:
        import torch

        data = torch.empty(self._archive.size(name), dtype=torch.uint8)
        # numpy arrays are buffers; its stubs say so from Python 3.12 on.
        self._archive.read_into(name, memoryview(data.numpy()))  # type: ignore[arg-type]
        return data


@dataclass(frozen=True)
class StorageKind:
    """A storage class of the pickle; only its dtype matters."""

    dtype: str


def _rebuild_tensor(
    storage: torch.Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_rest: object,
) -> torch.Tensor:
    """Return the view of a storage.

    `as_strided` refuses what lies outside it, but would make many elements of one by strides of 0.
    """
    view = storage.as_strided(tuple(size), tuple(stride), offset)
    if view.numel() > storage.numel():
        raise DamagedError("a tensor has more elements than its storage")
    return view


def _rebuild_of_dtype(
    storage: torch.Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: object,
    _hooks: object,
    dtype: torch.dtype,
    *_rest: object,
) -> torch.Tensor:
    """Return the view of a storage without a type, as newer dtypes are saved."""
    return _rebuild_tensor(storage.view(dtype), offset, size, stride)


def _rebuild_parameter(data: torch.Tensor, *_rest: object) -> torch.Tensor:
    return data


_REAL: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
}
