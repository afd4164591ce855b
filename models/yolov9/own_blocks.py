"""A user's own blocks for model descriptions: the classes of a module that was named by `--blocks`.

Importing a module runs it, so only a person names one, on the command line; no file does.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from memplan.errors import BadInputError

# What a block's constructor may call its channels and repeats, as published blocks do.
_INPUT = frozenset(
    """
    c1 c_in cin ch_in in_ch in_c inc inp in_channel in_channels in_dim in_planes inplanes
    channel channels dim
""".split()  # noqa: SIM905 - read as a table
)
_OUTPUT = frozenset(
    """
    c2 c_out cout ch_out out_ch out_c ouc outc oup out_channel out_channels out_dim out_planes
    planes
""".split()  # noqa: SIM905
)
_REPEATS = frozenset({"n", "num_blocks", "n_blocks", "num_repeats", "repeats"})


def load_blocks(names: str | None) -> dict[str, type[nn.Module]]:
    """Return the blocks of modules by their names, those that a module itself defines.

    Args:
        names: of modules, as `--blocks package.module` has them, several with commas; the working
            directory is searched too. None or empty gives none.

    Raises:
        BadInputError: a module cannot be imported, or defines no block.
    """
    found: dict[str, type[nn.Module]] = {}
    for name in filter(None, (one.strip() for one in (names or "").split(","))):
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a user's own module may raise anything while it loads
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInputError(
                f"--blocks {name!r} cannot be imported ({reason}). Give package.module, from the "
                "folder it is found in."
            ) from error
        own = {
            key: kind
            for key, kind in vars(module).items()
            if isinstance(kind, type)
            and issubclass(kind, nn.Module)
            and kind.__module__ == module.__name__
        }
        if not own:
            raise BadInputError(
                f"--blocks {name!r} defines no torch.nn.Module. Name the module whose file has "
                "the classes."
            )
        found |= own
    return found


def arguments_of(
    kind: type[nn.Module], channels: Sequence[int], args: Sequence[Any], width: Any, repeats: int
) -> tuple[list[Any], int]:
    """Return a block's arguments and how often it is repeated, by its constructor's parameters.

    One that begins with input and output channels takes both, and repeats where these come third;
    one that begins with input channels takes those. Others, and those that read several layers,
    take a row's arguments as they are.

    Args:
        kind: the block.
        channels: of each layer that it reads.
        args: of the row.
        width: makes a row's number of channels the scaled one.
        repeats: of the row, scaled.
    """
    parameters = [name for name in inspect.signature(kind).parameters if name != "self"]
    if len(channels) > 1 or not parameters or parameters[0].lower() not in _INPUT:
        return list(args), repeats
    if len(parameters) == 1 or parameters[1].lower() not in _OUTPUT:
        return [channels[0], *args], repeats
    if not args:
        return [channels[0]], repeats  # its own default, or the constructor says what is missing
    values = [channels[0], width(args[0])]
    if len(parameters) > 2 and parameters[2].lower() in _REPEATS:
        return [*values, repeats, *args[1:]], 1
    return [*values, *args[1:]], repeats


def missing_block(name: str, known: Mapping[str, Any]) -> BadInputError:
    """Return the error about a block that no description may name without more."""
    return BadInputError(
        f"Module {name!r} in the model description is not known. If it is yours, give the module "
        "that defines it, --blocks package.module, or a checkout that knows it, --workload "
        f"official:PATH. Known: {', '.join(sorted(known))}, and the layers of torch.nn."
    )
