"""`python -m orchestrator.compare DIR`: rebuild an experiment's tables, figures and report, and print the summary.

With several directories, such as `outputs/*`, print one table of their experiments, and write only the named files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from orchestrator.common import command
from orchestrator.common.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 2 where an experiment cannot be read, after the others have been shown."""
    parser = command.parser("orchestrator.compare", __doc__)
    parser.add_argument(
        "directories", type=Path, nargs="+", metavar="DIR", help="an experiment's directory, such as outputs/<name>"
    )
    parser.add_argument("--full", action="store_true", help="print every table of the report")
    parser.add_argument("--csv", type=command.output, metavar="FILE", help="write the table of experiments as CSV")
    parser.add_argument(
        "--workspace",
        action="store_true",
        help="also write a W&B view and report, pushed where there is a login",
    )
    parser.add_argument("--publish", action="store_true", help="send every finished cell to W&B from its files, again")
    parser.add_argument("--html", type=command.output, metavar="FILE", help="write the table of experiments as a page")
    return command.run(parser, _compare, arguments)


def _compare(options: argparse.Namespace) -> int:
    with command.importing():  # torch: seconds that --help need not wait for
        from orchestrator.analysis import compare, print_summary

    console = command.console()
    if len(options.directories) > 1 or options.csv or options.html:
        if options.workspace or options.publish:
            option = "--workspace" if options.workspace else "--publish"
            raise UserError(f"{option} takes one experiment: name one directory, without --csv and --html.")
        return _overview(options.directories, options.csv, options.html, console)
    comparison = compare(options.directories[0])
    print_summary(comparison, console, full=options.full)
    if options.publish:
        from orchestrator.tracking.publish import publish

        for sentence in publish(comparison):
            print(sentence, flush=True)
    if options.workspace:
        from orchestrator.tracking import workspace  # a second to import

        print(*workspace.publish(comparison), sep="\n")
    return 0


def _overview(paths: list[Path], csv: Path | None, html: Path | None, console: Console) -> int:
    from orchestrator.analysis import overview
    from orchestrator.analysis.survey import sort_out, survey

    directories, skipped = sort_out(paths)
    if not directories:
        listing = ", ".join(map(str, paths))
        raise UserError(f"No experiment.yaml in {listing}: name experiments' directories, such as outputs/<name>.")
    waiting = Console(stderr=True)
    arms = survey(
        track(directories, "Reading experiments", console=waiting, transient=True, disable=not waiting.is_terminal)
    )
    overview.print_overview(arms, skipped, console)
    if csv:
        overview.write_csv(arms, csv)
    if html:
        overview.write_html(arms, skipped, html)
    for path in filter(None, (csv, html)):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return 2 if any(arm.problem for arm in arms) else 0


if __name__ == "__main__":
    sys.exit(main())
