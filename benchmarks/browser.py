"""A Chromium without a window, spoken to through its debugging pipe: no package is needed for it.

Source: the Chrome DevTools protocol; with `--remote-debugging-pipe` the browser reads JSON texts,
each ended by NUL, from descriptor 3 and writes such to descriptor 4.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars", "--no-sandbox",
)  # fmt: skip


def found_browser() -> str | None:
    """Return the program of a Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One page of a browser; close it, or use it as a context.

    Args:
        program: of a Chromium.
        width: of the page, CSS pixels.
        height: of the page, CSS pixels.
        timeout: seconds after which an answer is no longer waited for.
    """

    def __init__(
        self, program: str, width: int = 1200, height: int = 900, timeout: float = 60.0
    ) -> None:
        self._timeout = timeout
        self._number = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        self._folder = tempfile.TemporaryDirectory(
            prefix="memplan-browser-", ignore_cleanup_errors=True
        )
        (to_browser, self._write), (self._read, from_browser) = os.pipe(), os.pipe()
        # Above the numbers that they are given in the child, so that neither covers the other.
        ends = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (to_browser, from_browser)]

        def connect() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            preexec_fn=connect,  # noqa: PLW1509 - nothing here runs threads
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (to_browser, from_browser, *ends):
            os.close(one)
        self._session = ""
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = found["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.ask(f"{domain}.enable")
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove what it left."""
        self._process.kill()
        self._process.wait()
        for handle in (self._write, self._read):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._folder.cleanup()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command of the protocol.

        Raises:
            RuntimeError: the browser refuses it.
            TimeoutError: it does not answer.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser does not answer")
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Give the page a size, CSS pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def open(self, path: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(one.get("method") == "Page.loadEventFired" for one in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Return what JavaScript gives, as JSON has it.

        Raises:
            RuntimeError: it throws.
        """
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event, such as `mouseMoved`, at a place of the window."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, name: str) -> None:
        """Press a key and let it go."""
        text = {"text": name} if len(name) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=name)

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since it was opened."""
        sent = (one for one in self.events if one.get("method") == "Network.requestWillBeSent")
        return [one["params"]["request"]["url"] for one in sent]

    def complaints(self) -> list[str]:
        """Return what scripts threw and what the browser logged since the page was opened."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        return [json.dumps(one["params"]) for one in self.events if one.get("method") in kinds]
