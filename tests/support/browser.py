"""A page in a real headless Chromium, spoken to by the browser's own protocol.

choreographer, which draws driftlens's pictures, finds the browser and starts it; so what can draw a PNG can run these
tests, and nothing more has to be installed. Every request the page makes and every error it raises is kept.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

_KEYS = {
    "Backspace": 8,
    "Tab": 9,
    "Enter": 13,
    "Home": 36,
    "End": 35,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def needs_browser() -> Any:
    """A mark that skips a test, with the reason, where there is no Chrome or Chromium."""
    return pytest.mark.skipif(_path() is None, reason="no Chrome or Chromium (and choreographer, of the extra 'image')")


def _path() -> str | None:
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return None
    return Chromium.find_browser(skip_local=False)


class Page:
    """A tab with a page in it."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def command(self, name: str, **params: Any) -> Any:
        answer = await self.tab.send_command(name, params)
        assert "error" not in answer, answer
        return answer["result"]

    async def open(self, url: str) -> None:
        async def requested(message: Any) -> None:
            self.requests.append(message["params"]["request"]["url"])

        async def thrown(message: Any) -> None:
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))

        async def logged(message: Any) -> None:
            if message["params"]["entry"]["level"] in ("error", "warning"):
                self.errors.append(message["params"]["entry"]["text"])

        async def printed(message: Any) -> None:
            if message["params"]["type"] in ("error", "warning", "assert"):
                self.errors.append(str(message["params"]["args"]))

        for name, on in (
            ("Network.requestWillBeSent", requested),
            ("Runtime.exceptionThrown", thrown),
            ("Log.entryAdded", logged),
            ("Runtime.consoleAPICalled", printed),
        ):
            self.tab.subscribe(name, on)
        for domain in ("Network", "Runtime", "Log", "Page"):
            await self.command(f"{domain}.enable")
        await self.command("Page.navigate", url=url)
        for _ in range(200):
            if await self.evaluate("location.href !== 'about:blank' && document.readyState === 'complete'"):
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"{url} does not finish loading")

    async def evaluate(self, script: str) -> Any:
        result = await self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def press(self, key: str) -> None:
        """A key by its name, or a letter."""
        letter = len(key) == 1
        number = ord(key.upper()) if letter else _KEYS[key]
        name = f"Key{key.upper()}" if letter else key
        text = {"text": "\r"} if key == "Enter" else {"text": key} if letter else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            await self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=name, windowsVirtualKeyCode=number, **more
            )

    async def reload(self) -> None:
        """Load the page anew, as somebody who closed the tab and comes back."""
        await self.evaluate("window.before = true")
        await self.command("Page.reload")
        done = {"expression": "!window.before && document.readyState === 'complete'"}
        for _ in range(200):
            # What is asked of the page that is going away is answered by an error.
            answer = await self.tab.send_command("Runtime.evaluate", done)
            if answer.get("result", {}).get("result", {}).get("value"):
                return
            await asyncio.sleep(0.05)
        pytest.fail("the page does not finish loading again")

    async def download(self, start: str, folder: Path) -> Path:
        """The file that the script `start` makes the page download."""
        await self.command("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        await self.evaluate(start)
        for _ in range(200):
            found = [path for path in folder.iterdir() if not path.name.endswith(".crdownload")]
            if found:
                return found[0]
            await asyncio.sleep(0.05)
        pytest.fail("nothing was downloaded")

    async def look(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.command("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        shot = await self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


def visit(place: Path | str, script: Callable[[Page], Awaitable[None]]) -> Page:
    """Open a file or an address, run `script`, and return the page with all it requested and complained about."""
    from choreographer import Browser

    async def run() -> Page:
        async with Browser(headless=True) as browser:
            page = Page(await browser.create_tab("about:blank"))
            await page.open(place if isinstance(place, str) else place.resolve().as_uri())
            await script(page)
            return page

    return asyncio.run(asyncio.wait_for(run(), 120))
