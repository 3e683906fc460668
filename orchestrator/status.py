"""`python -m orchestrator.status DIR`: each cell's progress, losses, layer roles and alerts."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from orchestrator.common import command
from orchestrator.common.errors import UserError, complain, no_experiment
from orchestrator.monitoring.cells import CellStatus, read_comparison, read_status
from orchestrator.monitoring.states import SHOWN
from orchestrator.monitoring.view import View
from orchestrator.monitoring.watch import outcome, watch


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 2 where there is nothing to show, else 0; with --watch, see `outcome`."""
    parser = command.parser("orchestrator.status", __doc__)
    parser.add_argument(
        "directory",
        type=Path,
        nargs="+",
        help="the experiment's directory, such as outputs/<name>; several with --serve",
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--watch", action="store_true", help="go on until every cell has ended; Ctrl-C stops watching")
    does.add_argument(
        "--resume",
        nargs="?",
        const="unfinished",
        choices=["failed", "unfinished", "all"],
        help="launch again the cells that failed; or also (default: unfinished) those that were stopped, are lost, or "
        "have never begun; or also the queued, the preempted and the zombies, whose jobs are cancelled first",
    )
    does.add_argument(
        "--prune",
        type=partial(command.count, least=0),
        metavar="KEEP",
        help="free the disk of finished cells: keep only the weights of their KEEP newest checkpoints",
    )
    does.add_argument("--cancel", action="store_true", help="end all its jobs and processes; cells save first")
    does.add_argument(
        "--serve",
        nargs="?",
        type=_port,
        default=argparse.SUPPRESS,
        metavar="PORT",
        help="show it in a browser of this machine, as it grows; Ctrl-C ends the server, and nothing else",
    )
    return command.run(parser, _status, arguments)


def _port(text: str) -> int:
    """The `type` of a port, 0 for any free one."""
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text} is no port, 0 to 65535 (directories come before --serve)")
    return int(text)


def _status(options: argparse.Namespace) -> int:
    if "serve" in options:
        return _serve(options.directory, options.serve)
    directory, *others = options.directory
    if others:
        raise UserError(f"{others[0]} is a second directory: only --serve takes several; --help says more.")
    console = command.console()
    if options.resume:
        # they import torch, 3 s that the status alone does without
        from orchestrator.launch.finalize import finalize
        from orchestrator.launch.resume import resume

        experiment = resume(directory, options.resume, console)
        return 0 if experiment is None else finalize(experiment, console, complain)
    if options.cancel:
        from orchestrator.launch.resume import cancel

        cancel(directory, console)
        return 0
    if options.prune is not None:
        from orchestrator.launch.prune import prune

        prune(directory, options.prune, console)
        return 0
    if options.watch:
        cells = watch(directory, console)
        counted = Counter(cell.state for cell in cells)
        print(f"Nothing runs any more: {', '.join(f'{n} {state}' for state, n in counted.items())}.")
        return outcome(cells)
    cells = read_status(directory)
    console.print(View(directory.resolve().name, cells, read_comparison(directory)))
    if advice := _advice(directory, cells):
        console.print(f"\n{advice}", style="dim", markup=False, highlight=False, soft_wrap=True)
    return 0


def _serve(directories: list[Path], port: int | None) -> int:
    """Serve the experiments until Ctrl-C. One that is not there yet is shown once it has begun."""
    from orchestrator.monitoring.live import serve  # jinja2

    for path in directories:
        if path.is_file() or (path / "config.yaml").is_file():
            raise UserError(no_experiment(path))
        if not path.exists():
            complain(f"{no_experiment(path)} Until then, its page says so.")
    serve(directories, port, lambda url: print(f"Serving {url} (on this machine alone); Ctrl-C ends it.", flush=True))
    return 0


def _advice(directory: Path, cells: Sequence[CellStatus]) -> str:
    """The next command, or the report, where nothing runs or waits any more; else empty."""
    states, path = {cell.state for cell in cells}, shlex.quote(str(directory))
    if any(SHOWN[state].is_live for state in states):
        return ""
    if states != {"done"}:
        return f"resume: python -m orchestrator.status {path} --resume"
    report = directory / "comparison/report.html"
    return f"report: {report}" if report.exists() else f"compare: python -m orchestrator.compare {path}"


if __name__ == "__main__":
    sys.exit(main())
