"""A server of this machine alone: pages, their state as JSON, and reports; nothing else, and only to read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from orchestrator.common.errors import UserError
from orchestrator.common.web.pages import environment
from orchestrator.monitoring.live.glossary import GLOSSARY
from orchestrator.monitoring.live.served import REPORT, Answer, Served, answer
from orchestrator.monitoring.watch import EFFORT

HOST, PORT, TRIED = "127.0.0.1", 8642, 100  # ports that are tried, from PORT on
NAMES = (HOST, "localhost")  # in the Host header; any other name was made to point here by somebody else's page
SUMMED = ("name", "place", "question", "problem", "total", "share", "counts", "left", "is_live", "severities")
HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other page may load the JSON as a script
}
# A report is a file that somebody may have sent: its scripts run, but see nothing of this server.
SANDBOXED = {"Content-Security-Policy": "sandbox allow-scripts allow-downloads allow-popups"}
ENVIRONMENT = environment("orchestrator.monitoring.live", GLOSSARY)


class Server(ThreadingHTTPServer):
    """Serves experiments by their names until it is shut down."""

    daemon_threads = True

    def __init__(self, directories: Sequence[Path], port: int | None = None) -> None:
        """`port`: None for the first free one from `PORT` on, 0 for any. Raises `UserError` where it is taken."""
        paths = list(dict.fromkeys(path.resolve() for path in directories))
        self.experiments = {name: Served(path, EFFORT / len(paths)) for name, path in _named(paths).items()}
        for tried in [port] if port is not None else range(PORT, PORT + TRIED):
            with suppress(OSError, OverflowError):
                super().__init__((HOST, tried), Handler)
                return
        which = f"Port {port} is" if port is not None else f"All ports from {PORT} to {PORT + TRIED - 1} are"
        raise UserError(f"{which} taken, or not to be had on {HOST}: name another one, as in --serve 9000.")

    @property
    def url(self) -> str:
        """The address of the experiment, or of the list of several."""
        (only, *others) = self.experiments
        return f"http://{HOST}:{self.server_port}/{'' if others else f'{_quoted(only)}/'}"

    def state(self) -> Answer:
        """Each experiment in a few numbers."""
        found = []
        for name, served in self.experiments.items():
            served.answer()
            known = served.document
            found.append({"href": f"{_quoted(name)}/"} | {key: known[key] for key in SUMMED if key in known})
        return answer({"experiments": found})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error of ours; a viewer that went away is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the paths that it knows, to viewers who call this machine by its own name."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "layer-roles", ""
    timeout = 60  # seconds of an idle connection

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or _host(hosts[0]) not in NAMES:
            self._send(403, TEXT, f"This server is {' or '.join(NAMES)}, whatever else points to it.\n")
            return
        path = unquote(self.path.partition("?")[0], errors="surrogateescape").removeprefix("/")
        experiments, (name, _, leaf) = self.server.experiments, path.rpartition("/")
        if path in ("", "state.json"):
            self._page("index.html.j2", "Experiments") if not path else self._json(self.server.state())
        elif path in experiments:
            self._send(308, TEXT, "", {"Location": f"/{_quoted(path)}/"})
        elif name in experiments and leaf in LEAVES:
            LEAVES[leaf](self, experiments[name])
        else:
            self._send(404, TEXT, "There is nothing of this name: / lists the experiments.\n")

    do_HEAD = do_GET

    def experiment(self, served: Served) -> None:
        """The page of one experiment, which then asks for its state."""
        up = len(self.server.experiments) > 1
        self._page("experiment.html.j2", served.directory.name, up=quote("/") if up else "")

    def state(self, served: Served) -> None:
        self._json(served.answer())

    def report(self, served: Served) -> None:
        """The report on disk, of the newest comparison that was written."""
        try:
            self._send(200, HTML, (served.directory / REPORT).read_bytes(), SANDBOXED)
        except OSError:
            self._send(404, TEXT, "There is no report yet: it is written when the cells are compared.\n")

    def so_far(self, served: Served) -> None:
        """The report of what has finished, which is not on disk."""
        page = served.so_far.page()
        if page is None:
            self._send(404, TEXT, "No cells are compared yet: look again when some are done.\n")
        else:
            self._send(200, HTML, page, SANDBOXED)

    def _page(self, template: str, title: str, **values: Any) -> None:
        self._send(200, HTML, ENVIRONMENT.get_template(template).render(title=title, **values))

    def _json(self, found: Answer) -> None:
        if self.headers.get("If-None-Match") == found.etag:
            self._send(304, JSON, None, {"ETag": found.etag})
        else:
            self._send(200, JSON, found.content, {"ETag": found.etag})

    def _send(self, code: int, kind: str, content: str | bytes | None, more: Mapping[str, str] | None = None) -> None:
        body = content.encode(errors="replace") if isinstance(content, str) else content
        self.send_response(code)
        for key, value in (HEADERS | dict(more or {})).items():
            self.send_header(key, value)
        if body is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing: pages ask every other second."""


LEAVES: dict[str, Callable[[Handler, Served], None]] = {
    "": Handler.experiment,
    "state.json": Handler.state,
    "report.html": Handler.report,
    "so-far.html": Handler.so_far,
}


def serve(directories: Sequence[Path], port: int | None, announce: Callable[[str], None]) -> None:
    """Serve the experiments until Ctrl-C; `announce` gets the address. Raises `UserError` where no port is free."""
    with Server(directories, port) as server, suppress(KeyboardInterrupt):
        announce(server.url)
        server.serve_forever()


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Name → path: a directory's own name, with as many of those above it as tell it from the others."""
    named: dict[str, Path] = {}
    for path in paths:
        names = ("/".join(path.parts[-length:]) for length in range(1, len(path.parts)))
        others = [other for other in paths if other != path]
        alone = (name for name in names if not any(f"{other}".endswith(f"/{name}") for other in others))
        named[next(alone, str(path).lstrip("/"))] = path
    return named


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


_quoted = partial(quote, errors="surrogateescape")
