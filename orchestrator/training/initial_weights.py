"""The weights that a cell starts from, where `train.init_from` names a checkpoint."""

from __future__ import annotations

from torch import Tensor

from orchestrator.common.errors import UserError
from orchestrator.config.schema import Config
from orchestrator.experiments.experiment import decoder_spec


def check(config: Config) -> None:
    """Raise `UserError` where the checkpoint cannot be found, or does not fit the model."""
    source = config.train.init_from
    if source is None:
        return
    from orchestrator.interventions import imported  # transformers, which other cells need not wait for

    try:
        found = imported.spec_at(imported.located(source))
    except UserError as error:
        raise UserError(f"train.init_from={source} cannot be used: {error}") from error
    if difference := imported.misfit(decoder_spec(config), found):
        raise UserError(
            f"train.init_from={source} does not fit the model ({difference}): set the key, or let "
            f"python -m orchestrator.export {source} DIR --import write all of them."
        )


def read(config: Config) -> dict[str, Tensor]:
    """The named parameters of the checkpoint, in fp32. Raises `UserError` as `check` does."""
    from orchestrator.interventions import imported

    check(config)
    assert config.train.init_from is not None
    decoder = imported.decoder_at(imported.located(config.train.init_from))
    return {name: parameter.detach() for name, parameter in decoder.named_parameters()}
