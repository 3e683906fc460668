"""The corpus of each arm: all cells of an arm, now and later, are trained on the one that it began with.

`experiment.yaml` records it as `data: {arm: {digest, domains: {domain: digest}}}`. Of an experiment that is older than
this record, the metrics logs know the digest: theirs at step 0 is the corpus's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.data import Corpus, prepare
from orchestrator.experiments import description
from orchestrator.storage import metrics_log

SHOWN = 12  # digits of a digest in a sentence


def prepare_for(config: Config, experiment_dir: Path, alike: Iterable[Config] = ()) -> Corpus:
    """The corpus of an arm, or of one of its cells, in the experiment: the one it began with, else that of today.

    `alike`: arms that are trained on the same text; what one of them began with, an arm begins with too. Raises
    `UserError` where text or tokenizer have changed since and the cache has lost the corpus, and as `prepare`.
    """
    digest = digest_of(config, experiment_dir, alike)
    corpus = prepare(config.data, config.model.vocab_size, config.train.seq_len, digest)
    if digest is not None and corpus.digest != digest:
        known = _recorded(experiment_dir).get(config.arm, {}).get("domains", {})
        now = corpus.digests if known else {"*": corpus.digest[:SHOWN]}
        was = known or {"*": digest[:SHOWN]}
        changes = [f"data.domains.{n} (was {was.get(n)}, is {now[n]})" for n in now if was.get(n) != now[n]]
        raise UserError(
            f"{experiment_dir}: the text or the tokenizer of {', '.join(changes)} changed after arm '{config.arm}' had "
            f"begun, and data.cache_dir={config.data.cache_dir} does not hold the corpus of then: restore either, or "
            "choose another name=... to train on the new text."
        )
    return corpus


def digest_of(config: Config, experiment_dir: Path, alike: Iterable[Config] = ()) -> str | None:
    """The digest of the corpus that the cell, else its arm, else an arm `alike` began with; None where none began."""
    arm = experiment_dir / config.arm
    own = begun_with(arm / f"seed={config.seed}")
    recorded = _recorded(experiment_dir).get(config.arm, {}).get("digest")
    of_seeds = (begun_with(cell) for cell in sorted(arm.glob("seed=*")))
    of_arms = (digest_of(other, experiment_dir) for other in alike)
    return own or recorded or next(filter(None, itertools.chain(of_seeds, of_arms)), None)


def begun_with(cell_dir: Path) -> str | None:
    """The digest of the corpus on which a cell's training began, from its metrics log; None where it has none."""
    record = metrics_log.first(cell_dir / "metrics.jsonl")
    return digest_in(record) if record else None


def digest_in(record: metrics_log.Record) -> str | None:
    """The corpus's digest in a cell's first record; None where it is not of step 0, or is that of a branch's trunk."""
    own = record.get("step") == 0 and "trunk" not in record
    return str(record["digest"]) if own and record.get("digest") else None


def described(corpus: Corpus) -> dict[str, Any]:
    """The entry of an arm in `experiment.yaml`."""
    return {"digest": corpus.digest, "domains": corpus.digests}


def _recorded(experiment_dir: Path) -> dict[str, Any]:
    return description.read(experiment_dir).get("data") or {}
