"""HTML built so that nothing from an answer can be more than text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

# Text that the parser or a script would take for more than text.
_IN_SCRIPTS = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def text(value: object) -> str:
    """Return a value as text that stands between tags or in a quoted attribute.

    Characters that no document may hold, such as control characters and lone halves of a pair, are
    shown as U+FFFD.
    """
    shown = "".join(c if _is_allowed(c) else "\ufffd" for c in str(value))
    return html.escape(shown, quote=True)


def _is_allowed(character: str) -> bool:
    point = ord(character)
    is_control = (point < 0x20 and character not in "\t\n\r") or 0x7F <= point < 0xA0
    return not is_control and not 0xD800 <= point < 0xE000


def data(identity: str, value: Any) -> str:
    """Return a data block that scripts of the page read with `JSON.parse`; it is never run."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character, escape in _IN_SCRIPTS.items():
        written = written.replace(character, escape)
    return f'<script type="application/json" id="{text(identity)}">{written}</script>'


def asset(name: str) -> str:
    """Return a file of this package."""
    return files("memplan.html").joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: Iterable[str]) -> str:
    """Return the whole document: style, one script, and nothing that is loaded from elsewhere.

    A content security policy lets this script run and no other, whatever a name in it says.
    """
    style, script = asset("page.css"), asset("timeline.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *body,
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )
