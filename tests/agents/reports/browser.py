"""A headless Chromium, driven by its DevTools protocol over two pipes: without a driver and without network."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("TEXTENVS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
LAUNCH = """import os, sys
read, write, *command = sys.argv[1:]
os.dup2(int(read), 60), os.dup2(int(write), 61)
os.dup2(60, 3), os.dup2(61, 4)
os.execv(command[0], command)"""
"""Starts a program that reads its commands from descriptor 3 and answers on 4."""
PATIENCE = 60.0
"""Seconds to wait for an answer; a loaded machine may be slow."""


class Chromium:
    """The browser; a context manager that ends it. ``profile`` is a new empty folder."""

    def __init__(self, profile: Path):
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        words = [
            sys.executable,
            "-S",
            "-c",
            LAUNCH,
            str(read),
            str(write),
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
        ]
        quiet = subprocess.DEVNULL
        words.append(f"--user-data-dir={profile}")
        self._process = subprocess.Popen(words, pass_fds=(read, write), stdout=quiet, stderr=quiet)
        os.close(read)
        os.close(write)
        os.set_blocking(self._from, False)
        self._left, self._number, self.events = b"", 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self._process.wait(timeout=10)
        except (TimeoutError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method, session=None, **parameters):
        """The result of a command of the protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(command | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self.wait(lambda message: message.get("id") == command["id"], method)["result"]

    def wait(self, wanted, what):
        """The next message that is ``wanted``; events go to ``events``."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while b"\0" in self._left:
                line, _, self._left = self._left.partition(b"\0")
                message = json.loads(line)
                if "method" in message:
                    self.events.append(message)
                assert "error" not in message, f"{what}: {message}"
                if wanted(message):
                    return message
            try:
                self._left += os.read(self._from, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
        raise TimeoutError(f"{what}: no answer")

    def open(self, address, *, width=1400, height=900, dark=False):
        """A new tab with a page."""
        return Tab(self, address, width, height, dark)


class Tab:
    """A page in the browser, with what its console said."""

    def __init__(self, browser, address, width, height, dark):
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.resize(width, height)
        self.call("Page.navigate", url=address)
        if not any(event["method"] == "Page.loadEventFired" for event in self._own()):
            browser.wait(
                lambda m: m.get("method") == "Page.loadEventFired" and m["sessionId"] == self._session, address
            )

    def _own(self):
        return [event for event in self._browser.events if event.get("sessionId") == self._session]

    def call(self, method, **parameters):
        """The result of a command of the protocol for this page."""
        return self._browser.call(method, self._session, **parameters)

    def resize(self, width, height):
        """The page as on a screen of that size; a narrow one is a phone's."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def run(self, script):
        """The value of an expression in JavaScript."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        """Press a key."""
        number, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": number, "text": text}
        for kind in ("rawKeyDown", "char", "keyUp") if text else ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **about)

    def until(self, script):
        """Wait until an expression in JavaScript is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def complaints(self):
        """Errors and warnings that the page's console has."""
        found = []
        for event in self._own():
            about = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(about["exceptionDetails"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
        return found
