"""Ten A/A experiments: arms that draw other initial weights and differ in nothing else. How many are told apart?

    python -m tests.studies.a_a OUTPUTS

Each adds pairs until decided, from 6 to 12. About half an hour on one core; the same command goes on where it was
stopped. Prints a line per experiment, and at the end how many were called better or worse, or had moved roles or
another budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXPERIMENTS = 10
COMMON = (
    "model=nano", "data=code", "declared=[train.init_stream]", "seeds=auto", "tracker=off", "launcher.parallel=1",
    "train.steps=100", "train.batch_size=4", "train.eval_every=100", "train.checkpoint_every=100",
    "train.keep_states=1", "forensics.every=100", "question='Are two arms told apart that differ in their draws?'",
)  # fmt: skip
FALSE = {"loss": ("better", "worse"), "roles": ("roles moved",), "budget": ("not conserved",)}


def run(outputs: Path, index: int) -> dict[str, Any]:
    """Train and compare one of the experiments; return its verdict."""
    streams = f"++arms={{a: ['train.init_stream={2 * index}'], b: ['train.init_stream={2 * index + 1}']}}"
    words = [*COMMON, streams, f"name=a_a_{index}", f"root={outputs}"]
    subprocess.run([sys.executable, "-m", "orchestrator", *words], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((outputs / f"a_a_{index}/comparison/verdict.json").read_text())
    return found


def words_of(verdict: dict[str, Any]) -> dict[str, str]:
    """Question → the word of verdict."""
    primary = next(r for r in verdict["losses"] if (r["metric"], r["domain"]) == ("test_loss", "mean"))
    roles = next((r["verdict"] for r in verdict["role_shifts"]), "not measured")
    return {"loss": primary["verdict"], "roles": roles, "budget": verdict["conservation"][0]["verdict"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.studies.a_a", description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, help="directory of the experiments")
    outputs = parser.parse_args().outputs
    found = []
    for index in range(EXPERIMENTS):
        verdict = run(outputs, index)
        found.append(words_of(verdict))
        primary = verdict["losses"][0]
        row = f"Δ {primary['delta']:+.4f} of {primary['a']:.4f}, p {primary['p']:.2g}"
        print(f"a_a_{index}: {len(verdict['pairs'])} pairs, {row}: {', '.join(found[-1].values())}", flush=True)
    for question, words in FALSE.items():
        print(f"{question}: {sum(one[question] in words for one in found)} of {EXPERIMENTS} told apart")


if __name__ == "__main__":
    main()
