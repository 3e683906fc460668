"""Write a W&B view and report of an experiment to disk, and push them where there is a login."""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from orchestrator.analysis.comparison import Comparison
from orchestrator.common.errors import UserError
from orchestrator.common.palette import arm_line
from orchestrator.config.schema import Config, TrackerMode
from orchestrator.storage.files import write_whole
from orchestrator.tracking import run
from orchestrator.tracking.workspace import charts
from orchestrator.tracking.workspace.report import report_of

VIEW, REPORT = "wandb_view.json", "wandb_report.json"
REFUSED = ("So", "Sk", "Sm", "Sc", "Cs")  # Unicode categories, such as that of =, that a view's name cannot have
MANY = 6  # most panels of a section that begins open
PINNED = (
    "final/test_loss/mean", "final/budget/saturated_robust", "final/centre/saturated_robust", "final/roles/specialist",
)  # fmt: skip


def publish(c: Comparison) -> list[str]:
    """Write the view and the report, push them where there is a login, and return sentences that report it.

    Logs the comparison's run, which they show, again. Raises `UserError` where the files cannot be written, or where
    the server rejects them after they were written.
    """
    config = _config_of(c)
    run.log_comparison(config, c)
    view, report = view_of(c, config), report_of(c, config)
    _recall(c, view, report)
    _write(c, view, report)
    where = f"W&B's view and report are {VIEW} and {REPORT} in {c.directory}"
    command = f"python -m orchestrator.compare {c.experiment.path} --workspace"
    if config.tracker.mode == TrackerMode.off:
        return [f"{where}, not pushed: with tracker=off there are no runs to show."]
    try:
        run.confine(c.directory)
        if problem := run.login_problem():
            return [f"{where}, not pushed: W&B {problem}, then {command}."]
        return _push(c, config, view, report)
    except UserError:
        raise
    except Exception as error:  # whatever W&B raises
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{where}, but W&B rejected them ({reason}): see that it can be reached, then {command}."
        ) from error
    finally:
        wandb.teardown()


def view_of(c: Comparison, config: Config, entity: str = "") -> ws.Workspace:
    """Return the unsaved view: every run of the experiment, grouped by arm, with panels for all that they logged."""
    name, names = str(config.name), charts.logged(c)
    series = (*charts.LOSSES, charts.DELTAS, *charts.LAYERS, *charts.DETAILS)
    found = {one.title: charts.panels(one, names) for one in series}
    found |= {"Figures": charts.figure_panels(c), "Tables": charts.table_panels(c)}
    runs = ws.RunsetSettings(
        groupby=[ws.Metric("Group"), ws.Config("arm")],
        group_colors={ws.GroupPath(name, arm): arm_line(i).colour for i, arm in enumerate(c.experiment.arms)},
        pinned_columns=[f"summary:{column}" for column in PINNED if column in names],
    )
    view = ws.Workspace(
        entity=entity or config.tracker.entity or "",
        project=config.tracker.project,
        name="".join(" " if unicodedata.category(x) in REFUSED else x for x in name),
        sections=[
            ws.Section(name=title, panels=panels, is_open=len(panels) <= MANY)
            for title, panels in found.items()
            if panels
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=runs,
    )
    return charts.only(view, group=name)


def _config_of(c: Comparison) -> Config:
    """Return the configuration of the first launched cell, for the tracker's settings."""
    for cell in c.experiment.cells:
        if (cell.path / "config.yaml").is_file():
            return replace(cell.config, name=c.experiment.path.resolve().name)  # that of a copy is its directory's
    raise UserError(f"{c.experiment.path} has no cell with a config.yaml: launch the experiment first.")


def _push(c: Comparison, config: Config, view: ws.Workspace, report: wr.Report) -> list[str]:
    """Save both at W&B in place of earlier ones, and return their addresses.

    The files on disk get the ids but no entity, so that building them needs no network.
    """
    api = wandb.Api()
    entity, project = str(config.tracker.entity or api.default_entity), config.tracker.project
    if project not in {known.name for known in api.projects(entity)}:
        api.create_project(project, entity)  # the runs may be synced later
    pushed_view, pushed_report = view_of(c, config, entity), report_of(c, config, entity)
    _recall(c, pushed_view, pushed_report)
    pushed_view.save()
    pushed_report.save()
    view._internal_id, view._internal_name = pushed_view._internal_id, pushed_view._internal_name
    report.id = pushed_report.id
    _write(c, view, report)
    return [f"W&B view: {pushed_view.url}", f"W&B report: {pushed_report.url}"]


def _write(c: Comparison, view: ws.Workspace, report: wr.Report) -> None:
    """Write both as the JSON that W&B's server takes."""
    for name, model in ((VIEW, view._to_model()), (REPORT, report._to_model())):
        write_whole(c.directory / name, model.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")


def _recall(c: Comparison, view: ws.Workspace, report: wr.Report) -> None:
    """Set the ids of both to those of their last save, from the files on disk."""
    view._internal_id, view._internal_name = _saved(c.directory / VIEW)
    report.id, _ = _saved(c.directory / REPORT)


def _saved(path: Path) -> tuple[str, str]:
    """Read the id and the name that W&B's server gave; empty before the first push."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["id"]), str(content["name"])
    return "", ""
