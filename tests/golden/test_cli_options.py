"""The options of every command, as a golden file: adding or renaming one is deliberate.

Regenerate with `python tests/golden/test_cli_options.py > tests/golden/cli_options.txt`, and
review the difference: a name that goes breaks somebody's script.
"""

from pathlib import Path

import click

from memplan.cli import cli

GOLDEN = Path(__file__).parent / "cli_options.txt"


def option_lines():
    """Return a line for each parameter of each command, in the order that help shows them."""
    return list(_lines("", cli))


def _lines(path, command):
    for parameter in command.params:
        yield f"{path}  {_described(parameter)}".strip()
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from _lines(f"{path} {name}".strip(), command.get_command(context, name))


def _described(parameter):
    if isinstance(parameter, click.Argument):
        return parameter.metavar or parameter.name.upper()
    spellings = ", ".join(parameter.opts)
    if parameter.secondary_opts:
        spellings += " / " + ", ".join(parameter.secondary_opts)
    if parameter.is_flag or parameter.count:
        return spellings
    value = parameter.metavar or parameter.type.name.upper()
    return f"{spellings} {value}{' (repeatable)' if parameter.multiple else ''}"


def test_options_are_those_of_the_golden_file():
    """Commands have exactly the options on record."""
    assert GOLDEN.read_text().splitlines() == option_lines()


def test_every_option_has_help():
    """No option that help shows is left without a sentence on what it does."""
    context = click.Context(cli)
    silent = [
        f"{name} {parameter.name}"
        for name in cli.list_commands(context)
        for parameter in cli.get_command(context, name).params
        if isinstance(parameter, click.Option) and not (parameter.help or parameter.hidden)
    ]

    assert [] == silent


def test_every_help_opens_with_an_example():
    """Each command's help holds a line that can be typed as it stands."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert f"memplan {name}" in (command.help or ""), name


if __name__ == "__main__":
    print("\n".join(option_lines()))
