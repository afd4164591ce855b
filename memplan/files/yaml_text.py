"""YAML within bounds: depth, size once aliases are written out, and one error for all that fails.

PyYAML's safe loader runs no code, but it raises other errors than its own for dates and tags
(ValueError for 2024-02-30), recurses as deeply as the text asks, and shares what aliases name, so
that a text of a kilobyte prints as gigabytes.
"""

from __future__ import annotations

from typing import Any

import yaml

from memplan.errors import is_out_of_memory

MOST_BYTES = 4 << 20
_MOST_DEPTH = 50
_MOST_VALUES = 500_000
"""With every alias written out."""
# A number of so many digits takes time that grows with their square.
_LONGEST_NUMBER = 400
_NUMBERS = ("int", "float", "timestamp")

# The parser in C where PyYAML was built with it, as its wheels are: ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYamlError(ValueError):
    """A text that is no YAML, or more of it than is read; the message is a clause."""


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        NotYamlError: it is none, or nested too deeply, or too large with its aliases written out.
    """
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except NotYamlError:
        raise
    except Exception as error:
        # Constructors of dates, tags and keys raise anything.
        if is_out_of_memory(error):
            raise
        raise NotYamlError(_reason(error)) from None


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if problem and mark is not None:
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    reason = " ".join(str(error).split())
    return f"{reason} ({type(error).__name__})" if reason else type(error).__name__


def _check_depth(text: str) -> None:
    """Refuse before anything recurses over the text."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MOST_DEPTH:
            raise NotYamlError(f"it is nested more than {_MOST_DEPTH} deep")
        if count > 2 * _MOST_VALUES:
            raise NotYamlError(f"it has more than {_MOST_VALUES} values")


def _check_size(root: yaml.Node) -> None:
    """Refuse aliases that name what holds them, and more values than are read."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size_of(node: yaml.Node, depth: int) -> int:
        if id(node) in above:
            raise NotYamlError("an alias names what holds it")
        if depth > _MOST_DEPTH:
            raise NotYamlError(f"it is nested more than {_MOST_DEPTH} deep")
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(size_of(child, depth + 1) for child in _children(node))
            above.remove(id(node))
        if sizes[id(node)] > _MOST_VALUES:
            raise NotYamlError(f"it has more than {_MOST_VALUES} values once aliases are followed")
        return sizes[id(node)]

    size_of(root, 0)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if len(node.value) > _LONGEST_NUMBER and node.tag.rpartition(":")[2] in _NUMBERS:
        raise NotYamlError(f"a number has {len(node.value)} characters")
    return []
