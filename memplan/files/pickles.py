"""A pickle looked through before it is read: within its own length, and of bounded depth.

The reader of the standard library makes room for what an opcode declares before it looks whether
it is there: nine bytes can ask for a terabyte, and the index of a memo entry for sixteen times it.

Source: CPython's Lib/pickletools.py (the opcodes) and Modules/_pickle.c (what each allocates).
"""

from __future__ import annotations

import pickletools

from memplan.errors import is_out_of_memory

# Opcodes that PyTorch writes never and that would make objects by a way of their own.
_REFUSED = frozenset(
    {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
)
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# What opens a container while another is open; what closes one.
_MARKS = frozenset({"MARK"})
_CLOSES = frozenset({"TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS"})
MOST_MARKS = 1000
"""How deep containers may nest."""
LONGEST_NUMBER = 1000
"""Bytes of a number; a longer one takes long to hash, or to write out."""


class BadPickleError(ValueError):
    """A pickle that is not read; the message is a clause that says why."""


def check_pickle(content: bytes) -> None:
    """Check that reading a pickle takes memory in proportion to its length.

    Raises:
        BadPickleError: it is cut short, or declares more than it has, or is nested too deeply.
    """
    marks = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            marks += (opcode.name in _MARKS) - (opcode.name in _CLOSES)
            if fault := _fault(opcode.name, argument, len(content), marks):
                break
        else:
            return
    except Exception as error:
        # A damaged pickle can raise nearly anything.
        if is_out_of_memory(error):
            raise
        fault = f"is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise BadPickleError(f"its pickle {fault}")


def _fault(name: str, argument: object, length: int, marks: int) -> str | None:
    """Return what is wrong with one opcode, None where nothing is."""
    if name in _REFUSED:
        return f"uses {name}, which no checkpoint does"
    if name in _STORES and not (isinstance(argument, int) and 0 <= argument <= length):
        return "numbers more objects than it has room for"
    if isinstance(argument, int) and argument.bit_length() > 8 * LONGEST_NUMBER:
        return "holds a number of thousands of digits"
    if marks > MOST_MARKS:
        return f"is nested more than {MOST_MARKS} deep"
    return None
