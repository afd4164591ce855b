"""Words of the official scripts that need no option of memplan's, and their way to write lists."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import click

from memplan.click_options import options
from memplan.errors import UsageError


def official_words(
    accepted: Mapping[str, str], refused: Mapping[str, str], *, valued: Collection[str] = ()
) -> Callable[[Any], Any]:
    """Return a decorator that knows options by name, hidden, and answers them with a reason.

    Args:
        accepted: options that change no result, and why; told on standard error.
        refused: options that would, and why they are not offered.
        valued: those of both that take a value.
    """

    def answer(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        del value
        if ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.DEFAULT:
            return
        name = parameter.opts[0]
        if name in refused:
            raise UsageError(f"{name} is not offered: {refused[name]}. Leave it out.")
        click.echo(f"{name} changes nothing: {accepted[name]}.", err=True)

    def known(name: str) -> Callable[[Any], Any]:
        kind: dict[str, Any] = {"type": str} if name in valued else {"is_flag": True}
        return click.option(
            name, hidden=True, expose_value=False, is_eager=True, callback=answer, **kind
        )

    return options(*map(known, (*accepted, *refused)))


class Side(click.ParamType):  # type: ignore[type-arg]  # no generic class before click 8.5
    """A side of square images, which may be given twice: height and width."""

    name = "pixels"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return pixels.

        Raises:
            UsageError: height and width differ, or it is no number.
        """
        del ctx
        sides = str(value).split(",")
        option = param.opts[0] if param is not None else "--img"
        if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
            raise UsageError(f"{option} {value} is no number of pixels. Give such as 640.")
        if len(set(sides)) > 1:
            raise UsageError(
                f"{option} {' '.join(sides)}: one side is taken, of squares or the longer one of "
                "rectangles. Give the larger."
            )
        return int(sides[0])


def joining(*names: str) -> type[click.Command]:
    """Return a class of commands that read `--classes 0 2` as `--classes 0,2`.

    Args:
        names: options that take several values, as far as the next word that begins with `-`.
    """

    class Joining(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            """Join the values behind an option before options are read."""
            joined: list[str] = []
            open_list = False
            for text in args:
                if open_list and not text.startswith("-") and joined[-1] not in names:
                    joined[-1] += f",{text}"
                    continue
                open_list = text in names or (open_list and joined[-1] in names)
                joined.append(text)
            return super().parse_args(ctx, joined)

    return Joining
