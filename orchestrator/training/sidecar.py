"""The sidecar of a cell, built from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.transformer import Decoder
from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config, Credit, SidecarMode, Trace
from orchestrator.data import Corpus
from orchestrator.experiments import playback
from orchestrator.experiments.experiment import decoder_spec, reward_rows
from orchestrator.experiments.forks import has_forks
from orchestrator.training.heldout import HeldoutLoss
from orchestrator.training.optimizer import Adam, layer_rates
from sidecar import Heldout, Rollout, Sidecar

OURS = ("reward_rows",)  # keys of `Config.sidecar` that `Sidecar` does not take


def sidecar_of(
    config: Config,
    cell_dir: Path,
    model: Decoder,
    optimizer: Adam,
    corpus: Corpus,
    loss: HeldoutLoss,
    rollout: Rollout,
) -> Sidecar | None:
    """The sidecar that acts on `model` as it trains; None where `sidecar.mode` is off.

    `rollout(step, count)` trains `count` steps from `step` on and changes only model and optimizer.
    Raises `UserError` where its bounds are not safe, or the decisions that it plays back are not complete.
    """
    if config.sidecar.mode == SidecarMode.off:
        return None
    decisions = playback.read(config, cell_dir)
    return _build(config, model, optimizer, _reward_loss(config, corpus, loss.parts), decisions, rollout)


def planned_sidecar(config: Config) -> Sidecar:
    """The sidecar of a model without weights, on the meta device: its units and tensors, before anything is trained.

    Raises `UserError` where its bounds are not safe.
    """
    sidecar, own = config.sidecar, (SidecarMode.fixed, SidecarMode.rule, SidecarMode.learn)
    if not sidecar.coefficients and sidecar.mode not in own:  # what it plays has yet to be recorded
        sidecar = replace(sidecar, mode=SidecarMode.learn, credit=Credit.joint, trace=Trace.interval)
    with torch.device("meta"):
        model = Decoder(decoder_spec(config))
    config = replace(config, sidecar=sidecar)
    optimizer = Adam(model.parameters(), config.optim)
    return _build(config, model, optimizer, lambda interval: torch.zeros(()), None, lambda step, count: None)


def _reward_loss(config: Config, corpus: Corpus, parts: Callable[[Tensor], Iterator[Tensor]]) -> Heldout:
    """Interval → the terms (`parts`) of the loss on its rows: the next ones of every domain's reward split."""
    count = reward_rows(config)
    splits = [corpus.heldout(domain, "reward") for domain in corpus.domains]

    def loss(interval: int) -> Iterator[Tensor]:
        at = torch.arange(interval * count, (interval + 1) * count)
        return parts(torch.cat([rows[at % len(rows)] for rows in splits]))

    return loss


def _build(
    config: Config,
    model: nn.Module,
    optimizer: Any,  # with torch's `state` and `param_groups`
    loss: Heldout,
    decisions: list[dict[str, Any]] | None,
    rollout: Rollout,
) -> Sidecar:
    optim = config.optim
    options = {f.name: getattr(config.sidecar, f.name) for f in fields(config.sidecar) if f.name not in OURS}
    try:
        return Sidecar(
            model, loss, lr=optim.lr, weight_decay=optim.weight_decay, eps=optim.eps, beta2=optim.beta2,
            decay=optim.decay, lr_factors=layer_rates(optim, model), seed=config.seed, steps=config.train.steps,
            optimizer=optimizer, fresh=True, playback=decisions, rollout=rollout if has_forks(config) else None,
            **options,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
