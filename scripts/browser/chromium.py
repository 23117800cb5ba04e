"""A headless Chromium that opens pages, driven by its DevTools protocol: for tests of pages and pictures of them."""

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = (
    "no Chromium was found: install it (apt-get install chromium; or pip install playwright; playwright install "
    "chromium), or let CHROMIUM name one"
)
FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-sandbox",  # the sandbox of Chromium does not start for root, and only our own pages are opened
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
    "--remote-debugging-port=0",
)
SECONDS = 90.0
"""How long anything may take."""


def found() -> str | None:
    """The path of a Chromium: what the environment variable CHROMIUM names, a known name, or Playwright's."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    own = sorted(cache.glob("chromium-*/chrome-linux*/chrome"))
    return next((path for name in NAMES if (path := shutil.which(name))), str(own[-1]) if own else None)


class Browser:
    """One page of a headless Chromium. Use as a context manager.

    Args:
        flags: further ones of the command line.

    Raises:
        FileNotFoundError: there is no Chromium.
    """

    def __init__(self, *flags: str) -> None:
        path = found()
        if path is None:
            raise FileNotFoundError(INSTALL)
        self._command, self._number = [path, *FLAGS, *flags], 0
        self.faults: list[str] = []

    def __enter__(self) -> "Browser":
        import websocket

        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [*self._command, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = self._address()
            self._socket = websocket.create_connection(
                f"ws://127.0.0.1:{port}{path}", timeout=SECONDS, suppress_origin=True
            )
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _address(self) -> tuple[str, str]:
        """Port and path at which it listens, which it writes down once it does."""
        file, until = Path(self._folder.name) / "DevToolsActivePort", time.monotonic() + SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            lines = file.read_text().splitlines() if file.is_file() else []
            if len(lines) == 2:
                return lines[0], lines[1]
            time.sleep(0.02)
        raise RuntimeError(f"{self._command[0]} did not start")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol returns.

        Raises:
            RuntimeError: the browser says that it failed.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._hear(answer)

    def _hear(self, event: Mapping[str, Any]) -> None:
        """Keep the errors of a page."""
        told, what = event.get("params", {}), event.get("method")
        if what == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description", details["text"]))
        elif what == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.faults.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))
        elif what == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.faults.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def show(
        self,
        width: int,
        height: int,
        *,
        dark: bool = False,
        still: bool = True,
        scale: float = 1.0,
        scripts: bool = True,
    ) -> None:
        """Set the size of the window and what the user prefers.

        Args:
            still: less motion.
            scale: pixels of a screenshot along one of the page.
            scripts: whether pages may run any.
        """
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        self.call(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()]
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded; errors of earlier pages are forgotten."""
        self.faults.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, awaited.

        Raises:
            RuntimeError: it throws.
        """
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a condition holds in the page.

        Raises:
            TimeoutError: it does not.
        """
        until = time.monotonic() + SECONDS
        while not self.evaluate(condition):
            if time.monotonic() > until:
                raise TimeoutError(f"{condition} did not come true; the page complains of {self.faults}")
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """Press a key that has a name and a number, such as ArrowLeft, 37."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, clip: tuple[float, float, float, float] | None = None) -> Image.Image:
        """What is seen in the window, or in a part of the page: left, top, width, height."""
        part = {}
        if clip is not None:
            part = {"clip": {**dict(zip(("x", "y", "width", "height"), clip, strict=True), scale=1)}}
        content = self.call("Page.captureScreenshot", format="png", **part)["data"]
        return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
