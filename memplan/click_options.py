"""Options of command lines that several of them share: lists of options, and one for each lever."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from memplan.spec import CHOICE, FLAG, LEVERS, MODULES, NAME, NUMBER, TEXT, Lever

F = TypeVar("F", bound=Callable[..., Any])
_METAVARS = {CHOICE: "NAME", NAME: "NAME", NUMBER: "N", MODULES: "WHAT", TEXT: "OPTIONS"}


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that applies several options, the first listed shown first."""

    def apply(function: F) -> F:
        return functools.reduce(lambda f, decorate: decorate(f), reversed(decorators), function)

    return apply


blocks_option = click.option(
    "--blocks",
    metavar="MODULE",
    help="A module of yours, such as package.module, whose classes the PATH.yaml of --cfg names; "
    "importing it runs it.",
)


def lever_options(command: str) -> Callable[[F], F]:
    """Return the options of a command that say how a step runs, one a lever."""
    return options(*(_lever_option(one) for one in LEVERS if command in one.commands))


def _lever_option(lever: Lever) -> Callable[[F], F]:
    # By the parameter of the lever's name, so that values are found by it.
    if lever.kind == FLAG:
        names = f"{lever.option}/{lever.negative}" if lever.negative else lever.option
        return click.option(names, lever.name, is_flag=True, default=False, help=lever.help)
    kind = int if lever.kind == NUMBER else str
    return click.option(
        lever.option,
        lever.name,
        type=kind,
        default=lever.plain if lever.kind == NAME else None,
        metavar=_METAVARS[lever.kind],
        help=lever.help,
    )
