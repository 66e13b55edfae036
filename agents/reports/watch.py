"""The page of a run while it trains, served on this machine alone; it renews itself."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agents.reports.page import report_page
from agents.reports.run_files import TOKENS, read_run
from agents.runs.run_dir import RunDirError
from reward_models.aside import PART

HOST = "127.0.0.1"


class WatchServer(ThreadingHTTPServer):
    """Serves the page of the run in ``folder`` at ``address``; ``port`` 0 takes a free one.

    Raises:
        RunDirError: if the folder holds no training run.
        ValueError: if the port is taken, or may not be used.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self._kept = ("", "")
        self.page()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as fault:
            raise ValueError(f"port: expected one that is free, received {port}: {fault}") from fault
        self.port = int(self.server_address[1])
        self.address = f"http://{HOST}:{self.port}/"

    def page(self) -> str:
        """The page as of now; made anew only if a file has changed."""
        files = (path for pattern in ("*.*", "*/*.*") for path in sorted(self.folder.glob(pattern)))
        times = tuple((path.name, path.stat().st_mtime_ns) for path in files if path.suffix != PART)
        stamp = f"{hash(times):x}"
        if stamp != self._kept[0]:
            self._kept = (stamp, report_page(read_run(self.folder), stamp=stamp))
        return self._kept[1]


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        if self.headers.get("Host") not in (f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"):
            return self.send_error(HTTPStatus.FORBIDDEN)  # a page of another name, led here by its name server
        tokens = self.server.folder / TOKENS
        if self.path == f"/{TOKENS}" and tokens.is_file():
            return self._answer(tokens.read_text(encoding="utf-8"))
        if self.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            return self._answer(self.server.page())
        except (RunDirError, OSError) as fault:  # another run is about to begin there
            return self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(fault))

    def _answer(self, page: str) -> None:
        content = page.encode()
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal shows the address."""
