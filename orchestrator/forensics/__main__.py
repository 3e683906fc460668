"""`python -m orchestrator.forensics PATH`: classify the layers of a checkpoint and print what was found."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from orchestrator import checkpoint
from orchestrator.errors import UserError
from orchestrator.forensics.analysis import analyze
from orchestrator.forensics.measures import MEASURES, NEEDS

COLOURS = {"hub": "dodger_blue1", "damper": "dark_orange", "passthrough": "grey62", "specialist": "magenta"}
WIDE = 120  # columns from which a terminal has room for the evidence
BLOCKS = " ▁▂▃▄▅▆▇█"


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a critical pathology was found, 2 for input that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.forensics", description=__doc__)
    parser.add_argument("path", type=Path, help="a cell, or a checkpoint directory or .safetensors file, ours or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row per layer as CSV")
    options = parser.parse_args(arguments)
    try:
        for target in (options.json, options.csv):
            if target is not None and not target.parent.is_dir():
                raise UserError(f"{target} cannot be written: make the directory {target.parent} first.")
        start = time.perf_counter()
        result = analyze(whole(options.path))
        seconds = time.perf_counter() - start
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, allow_nan=False))
        if options.csv is not None:
            write_csv(result, options.csv)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(report(result, seconds, wide=console.width >= WIDE))
    return int(any(finding["severity"] == "critical" for finding in result["pathology"]))


def whole(path: Path) -> Path:
    """What to read: `path`, or the newest whole checkpoint where it is a cell's directory.

    Raises `UserError` where it is sealed as ours are and a byte is not as it was written.
    """
    if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file():
        return checkpoint.find(path)
    if path.is_file() and (path.parent / "manifest.json").is_file():
        checkpoint.find(path.parent)
    return path


def write_csv(result: dict[str, Any], path: Path) -> None:
    """One row per layer: layer, role, margin, each score, each measure; an absent value is an empty cell."""
    rows = [
        {
            "layer": layer["layer"],
            "role": layer["role"],
            "margin": layer["margin"],
            **{f"score_{role}": score for role, score in layer["scores"].items()},
            **layer["measures"],
        }
        for layer in result["layers"]
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def report(result: dict[str, Any], seconds: float, *, wide: bool = True) -> Group:
    """All that is printed: within 120 columns, or within 80, without the evidence, where it is not `wide`."""
    step = "" if result["step"] is None else f" · step {result['step']}"
    heading = Text(f"{result['source']} · {result['family']}{step} · {len(result['layers'])} layers", "bold")
    return Group(
        heading,
        Text(),
        layer_table(result, wide=wide),
        Text(),
        *totals(result),
        Text(),
        *findings(result),
        *notes(result, seconds),
    )


def layer_table(result: dict[str, Any], *, wide: bool) -> Table:
    """One line per layer: its role, how clear it is, the headline measures, and what speaks for the role."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", justify="right", no_wrap=True)
    for name in ("role", "margin"):
        table.add_column(name, no_wrap=True)
    for name in ("cv", "saturated", "rank of o", "att.", "m·w down"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("evidence", no_wrap=True)
    cvs = [layer["measures"]["cv"] or 0.0 for layer in result["layers"]]
    for layer in result["layers"]:
        m = layer["measures"]
        table.add_row(
            str(layer["layer"]),
            _role(layer["role"]),
            f"{layer['margin']:.3f}",
            _bar(m["cv"], max(cvs)) + _number(m["cv"], ".2f"),
            _beside(m["saturated_robust"], m["saturated_robust_expected"]),
            _bar(m["effective_rank.o_fraction"], 1.0) + _number(m["effective_rank.o"], ".1f"),
            _number(m["attention_share"], ".2f"),
            _number(m["momentum_alignment.down"], "+.3f"),
            *([Text(" ".join(layer["evidence"]), "dim")] if wide else []),
        )
    return table


def totals(result: dict[str, Any]) -> list[Text]:
    """The specialist budget under each reference, beside what chance gives."""
    total = result["totals"]
    words = {"saturated": "mean + 3 std", "saturated_robust": "robust", "saturated_fixed": "step-0 threshold"}
    counts = [
        f"{name} {total[key]} / {total[f'{key}_expected']:.1f}" for key, name in words.items() if total[key] is not None
    ]
    return [Text("Saturated positions / by chance: " + " · ".join(counts))]


def findings(result: dict[str, Any]) -> list[Text]:
    """One line per tensor out of proportion."""
    if not result["pathology"]:
        return [Text("Pathology: none; no spectral norm is ten times its peers'.", "green")]
    colour = {"warn": "yellow", "critical": "bold red"}
    return [
        Text(
            f"Pathology ({f['severity']}): {f['tensor']} has {f['ratio']:.1f}× its peers' spectral norm",
            colour[f["severity"]],
        )
        for f in result["pathology"]
    ]


def notes(result: dict[str, Any], seconds: float) -> list[Text]:
    """What was missing, what the roles are worth, how long it took."""
    needs = {key.split(".")[0]: NEEDS[entry.needs] for key, entry in MEASURES.items()}
    reasons: dict[str, list[str]] = {}
    for name in result["missing"]:
        reasons.setdefault(f"needs {needs[name]}" if name in needs else "not measured yet", []).append(name)
    lines = [f"Missing, {why}: {', '.join(names)}." for why, names in reasons.items()]
    lines += [f"{name} read from {what}." for name, what in result["substitutes"].items()]
    lines.append("saturated: above the robust threshold / by chance. m·w: momentum alignment, + grows the weight.")
    lines.append(f"Roles rest on {result['layers'][0]['coverage']:.0%} of the routed features.")
    lines.append("By the paper's rule some 60 to 70 % of an untrained model's layers get a role too (SCIENCE §3).")
    lines.append(f"Read in {seconds:.2f} s.")
    return [Text(line, "dim") for line in lines]


def _role(role: str) -> Text:
    parts = [Text(part, COLOURS[part] if "/" not in role else f"dim {COLOURS[part]}") for part in role.split("/")]
    return Text("/").join(parts)


def _bar(value: float | None, largest: float) -> str:
    """A bar one character wide and a space."""
    return "" if value is None or not largest else BLOCKS[round(value / largest * (len(BLOCKS) - 1))] + " "


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _beside(count: int, expected: float) -> Text:
    return Text.assemble((str(count), "bold"), (f" / {expected:.1f}", "dim"))


if __name__ == "__main__":
    sys.exit(main())
