"""A real browser, without a window, for tests of pages: the fixture `browser` opens one, or skips.

Spoken to by the protocol of Chromium's developer tools, which needs no driver of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 30.0


class Browser:
    """One page. `requests` and `complaints` are what it has asked the network for and said on its console."""

    def __init__(self, program: str, folder: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        self.process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={folder}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE_S) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.loop = asyncio.new_event_loop()
        self.socket = self._wait(lambda: websocket_connect(page["webSocketDebuggerUrl"], max_message_size=2**26))
        self.count, self.requests, self.complaints = 0, list[str](), list[str]()
        self.loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.loop.close()

    def call(self, method: str, **parameters: Any) -> dict:
        """A command of the protocol, and what it gives."""
        self.count += 1
        order = json.dumps({"id": self.count, "method": method, "params": parameters})
        self._wait(lambda: self.socket.write_message(order))
        while (message := self._read()).get("id") != self.count:
            pass
        assert "error" not in message, message["error"]
        return message["result"]

    def open(self, path: Path) -> None:
        """Loads a file and waits until it is there."""
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._read()

    def value(self, expression: str) -> Any:
        """What an expression is in the page, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard, where the focus is."""
        extra = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def scheme(self, name: str) -> None:
        """What the system prefers: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def width(self, pixels: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=800, deviceScaleFactor=1, mobile=False)

    def _read(self) -> dict:
        text = self._wait(self.socket.read_message)
        assert text is not None, "the browser has gone"
        message = json.loads(text)
        told = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(told)[:500])
            case "Page.loadEventFired":
                self.loaded = True
        return message

    def _wait(self, begin: Callable[[], Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(begin(), PATIENCE_S)

        return self.loop.run_until_complete(bounded())


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = os.environ.get("TVMCOMPRESS_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    try:
        yield opened
    finally:
        opened.close()
        time.sleep(0.1)
