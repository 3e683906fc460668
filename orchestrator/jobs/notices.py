"""Notices: a command or a webhook of the user's hears of an experiment's end, and of each cell that fails for good.

`notify` of the configuration names them. The process that records an event sends its notice, once. Nothing that a
command or a webhook does changes what becomes of the experiment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml

from orchestrator.common.errors import complain
from orchestrator.common.formatting import printable
from orchestrator.config.load import plain_yaml
from orchestrator.config.schema import NotifyConfig
from orchestrator.storage.event_log import EventLog

COMMAND_SECONDS, WEBHOOK_SECONDS = 30.0, 10.0  # the longest that either may take
REFUSALS = (OSError, ValueError, HTTPException, subprocess.SubprocessError)
_warned = False  # of the first notice of this process that could not be sent


@dataclass(frozen=True)
class Notice:
    """One event as a sentence, and for programs."""

    text: str  # chat services show this key of what is posted to their webhooks
    event: str  # cell_failed, or an end of the experiment: compared, stopped, failed
    experiment: str
    cell: str  # <arm>/seed=<k>; empty at an end
    directory: str  # of the experiment


def fail(events: EventLog, cell: str, reason: str, **which: Any) -> None:
    """Record that a cell has failed for good, and send a notice; `which`: more arguments of `EventLog.append`."""
    events.append(cell, "failed", reason=reason, **which)
    cell_failed(events, cell, reason)


def cell_failed(events: EventLog, cell: str, reason: str) -> None:
    """Send a notice of a cell's failure, which is recorded already, as the cell's configuration has it."""
    directory = events.path.parent.resolve()
    text = f"{directory.name}: {cell} has failed: {reason}"
    send(_recorded(directory / cell), text, "cell_failed", directory, cell)


def send(to: NotifyConfig, text: str, event: str, directory: Path, cell: str = "") -> None:
    """Run the command and post to the webhook that are configured; warn, once, where one does not take the notice."""
    notice = Notice(printable(text), event, directory.name, cell, str(directory))
    for key, address, deliver in (("command", to.command, _run), ("webhook", to.webhook, _post)):
        if address:
            _attempt(f"notify.{key}", address, notice, deliver)


def _attempt(key: str, address: str, notice: Notice, deliver: Callable[[str, Notice], None]) -> None:
    global _warned
    try:
        deliver(address, notice)
    except REFUSALS as error:
        if not _warned:
            _warned = True
            complain(
                printable(
                    f"{key} did not take a notice ({error}); try it by hand; the experiment does not depend on it."
                )
            )


def _run(line: str, notice: Notice) -> None:
    """Run a line of the user's own in a shell; end it, and what it started, after `COMMAND_SECONDS`."""
    fields = asdict(notice)
    variables = {f"LAYER_ROLES_{key.upper()}": value for key, value in fields.items()}
    with tempfile.TemporaryFile() as stdin:  # a pipe would break where the command does not read it
        stdin.write(json.dumps(fields, ensure_ascii=False).encode(errors="surrogateescape"))
        stdin.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", line], stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | variables, start_new_session=True,
        )  # fmt: skip
    try:
        code = process.wait(COMMAND_SECONDS)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        raise ValueError(f"exit code {code}")


def _post(address: str, notice: Notice) -> None:
    content = json.dumps(asdict(notice)).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
        pass  # any answer of success will do


def _recorded(cell_dir: Path) -> NotifyConfig:
    """The cell's `notify`; nothing to notify where its configuration cannot be read, or is older than the key."""
    try:
        found = plain_yaml((cell_dir / "config.yaml").read_text(encoding="utf-8"))["notify"]
        return NotifyConfig(command=found["command"], webhook=found["webhook"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return NotifyConfig()
