"""The study of SCIENCE §3: candidate nulls × laws of weights × planted structures × cost.

    python -m tests.studies.null DIRECTORY [COLUMN ...]

computes what is not yet in DIRECTORY, one model after another, and prints both tables: 16 minutes of one core. Columns
are independent of each other, so several processes may compute different ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.transformer import Decoder
from orchestrator.common import command
from orchestrator.forensics.roles import scoring
from orchestrator.forensics.roles.routing import ROLES
from tests.orchestrator.forensics.laws import LAWS, UNEQUAL, under
from tests.orchestrator.forensics.plantings import PLANTINGS, planted
from tests.orchestrator.forensics.untrained import model, spec
from tests.studies.null.nulls import PEERS, RESAMPLED, Rows, beside_peers, beside_resamples, read, redrawn

THOUSAND, FEW = 91, 24  # models of 11 layers for each law: 1001 layers, and 264 where weights are resampled
SEEDS, FEW_SEEDS = 8, 4  # models for each strength of a planted structure, and where weights are resampled
STRENGTHS = (1.5, 2.0, 3.0)
UNTRAINED = "independent Gaussian entries"
CHOSEN = "peers, by Qn"
Model = Callable[[int], tuple[Decoder, int | None]]  # seed → model, and the layer in which something is planted


def _of_law(name: str) -> Model:
    law = (LAWS | UNEQUAL).get(name)
    return lambda seed: (model(spec(), seed) if law is None else under(law, model(spec(), seed), seed), None)


def _with_planted(name: str, strength: float) -> Model:
    return lambda seed: planted(PLANTINGS[name].recipe, strength, seed)


LAW_COLUMNS = {name: _of_law(name) for name in (UNTRAINED, *LAWS, *UNEQUAL)}
PLANTED_COLUMNS = {f"{name} {strength}": _with_planted(name, strength) for name in PLANTINGS for strength in STRENGTHS}
NOTHING = "nothing"  # planted: strength 1 of any structure
COLUMNS = LAW_COLUMNS | {NOTHING: _with_planted("specialist", 1.0)} | PLANTED_COLUMNS


def judged(decoder: Decoder, seed: int, resample: bool) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Roles of the layers by each candidate, and the CPU seconds of a reading by itself and of each resampling."""
    start = time.process_time()
    rows, expected = read(decoder)
    roles = {
        "the paper's rule": [role.role for role in scoring.paper(rows, expected)],
        CHOSEN: [role.role for role in scoring.calibrated(rows, expected)],
    }
    seconds = {CHOSEN: time.process_time() - start}
    roles |= {name: beside_peers(rows, expected, deviations) for name, deviations in PEERS.items()}
    for name, null in RESAMPLED.items() if resample else ():
        start = time.process_time()
        resampled: list[Rows] = [read(other)[0] for other in redrawn(decoder, null, seed)]
        seconds[name] = time.process_time() - start
        roles[name] = beside_resamples(rows, resampled)
    return roles, seconds


def compute(directory: Path, column: str) -> None:
    """Add the models of a column that its file lacks."""
    path = directory / f"{column}.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    models, resampled = (THOUSAND, FEW) if column in LAW_COLUMNS else (SEEDS, FEW_SEEDS)
    for seed in range(done, models):
        decoder, at = COLUMNS[column](seed)
        roles, seconds = judged(decoder, seed, resample=seed < resampled)
        with path.open("a") as file:
            file.write(json.dumps({"at": at, "roles": roles, "seconds": seconds}) + "\n")


def _models(directory: Path, column: str, candidate: str) -> list[dict[str, Any]]:
    """The models of a column that the candidate has judged."""
    path = directory / f"{column}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [one for one in found if candidate in one["roles"]]


def false_roles(directory: Path, columns: list[str], candidate: str) -> str:
    """Per cent of the layers in which nothing is planted that have a role."""
    found = [
        role in ROLES
        for column in columns
        for one in _models(directory, column, candidate)
        for layer, role in enumerate(one["roles"][candidate])
        if layer != one["at"]
    ]
    return f"{100 * np.mean(found):.1f}" if found else ""


def recall(directory: Path, planting: str, candidate: str) -> str:
    """Share of the planted layers that have the role, for strength 1 and `STRENGTHS`."""
    shares = []
    for column in (NOTHING, *(f"{planting} {strength}" for strength in STRENGTHS)):
        found = [one["roles"][candidate][one["at"]] for one in _models(directory, column, candidate)]
        shares.append(f"{np.mean([role == PLANTINGS[planting].role for role in found]):.2g}" if found else "")
    return " ".join(shares)


def cost(directory: Path, candidate: str) -> str:
    """CPU seconds of a reading with the candidate over those with the chosen one."""
    if candidate not in RESAMPLED:
        return "1"
    seconds = [one["seconds"] for column in COLUMNS for one in _models(directory, column, candidate)]
    return f"{1 + sum(s[candidate] for s in seconds) / sum(s[CHOSEN] for s in seconds):.1f}" if seconds else ""


def tables(directory: Path) -> str:
    """Both tables, in Markdown."""
    candidates = ["the paper's rule", *RESAMPLED, *PEERS, CHOSEN]
    laws, plantings = [["candidate", *LAW_COLUMNS, "cost"]], [["candidate", *PLANTINGS, "other layers"]]
    for c in candidates:
        laws.append([c, *(false_roles(directory, [law], c) for law in LAW_COLUMNS), cost(directory, c)])
        found = [recall(directory, planting, c) for planting in PLANTINGS]
        plantings.append([c, *found, false_roles(directory, [NOTHING, *PLANTED_COLUMNS], c)])
    return f"{_markdown(laws)}\n\n{_markdown(plantings)}"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for arguments that cannot be used."""
    parser = command.parser("tests.studies.null", __doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the directory that keeps what has been computed")
    parser.add_argument("columns", nargs="*", metavar="COLUMN", help="some of the columns alone")
    return command.run(parser, lambda options: _study(options.directory, options.columns), arguments)


def _study(directory: Path, columns: list[str]) -> None:
    """Compute and print."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for column in columns or COLUMNS:
        compute(directory, column)
    print(tables(directory))


if __name__ == "__main__":
    sys.exit(main())
