"""Files that others made: read within bounds, checked, and never run; and files written whole."""

from memplan.files.archives import CheckedArchive
from memplan.files.places import in_checkout
from memplan.files.source import MIB, Source, brief, is_file, is_there
from memplan.files.structures import converted, decoded
from memplan.files.writing import drop_partials, replaced, write_text

__all__ = [
    "MIB",
    "CheckedArchive",
    "Source",
    "brief",
    "converted",
    "decoded",
    "drop_partials",
    "in_checkout",
    "is_file",
    "is_there",
    "replaced",
    "write_text",
]
