"""Evidence: a result of `intervene` in a file, that says what leaving layers out will cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.common.errors import UserError
from orchestrator.common.shapes import LIST, MAPPING, NUMBER, TEXT, Kind, ShapeError, check_shape, optional
from orchestrator.interventions.measured import predicted

SHAPE = {"source": TEXT, "edits": LIST, "documents": MAPPING, "intact": MAPPING, "layers": LIST}
VALUE = optional(NUMBER)
ENDS = ("mean", "low", "high")
DAMAGE = Kind("a damage", lambda of: isinstance(of, dict) and all(VALUE.fits(of.get(end, "")) for end in ENDS))
SAME = 1e-3  # nats per token between losses of one model on one text


@dataclass(frozen=True)
class Evidence:
    """A result of `intervene`, and the file that holds it."""

    path: Path
    result: Mapping[str, Any]

    def predict(
        self, source: Path, depth: int, dropped: Sequence[int], text: str, intact: Mapping[str, float]
    ) -> dict[str, Any]:
        """The rise of the loss where the layers `dropped` are left out, and by what it is predicted; plain JSON values.

        Of the model that loses them: its `source`, its `depth`, and `intact`, its losses on the text of the digest
        `text`. Raises `UserError` for evidence of another model, and for one without the deletion of layers.
        """
        cure = f"run python -m orchestrator.intervene {source} --json {self.path}"
        of, is_same_text = self.result, self.result.get("text") == text
        if len(of["layers"]) != depth:
            raise UserError(f"{self.path} is of a model of {len(of['layers'])} layers, {source} has {depth}: {cure}.")
        if is_same_text:
            self._refuse_other_losses(source, intact, cure)
        elif of["source"] != str(source):
            raise UserError(f"{self.path} is of {of['source']}, not of {source}: {cure}.")
        if (found := predicted(of, dropped)) is None:
            raise UserError(f"{self.path} lacks the edit delete, which predicts the cost of dropping layers: {cure}.")
        cost, how = found
        return {"evidence": str(self.path), "how": how, "same_text": is_same_text, "cost": cost}

    def _refuse_other_losses(self, source: Path, intact: Mapping[str, float], cure: str) -> None:
        for domain, loss in intact.items():
            found = self.result["intact"].get(domain)
            if not isinstance(found, float) or abs(found - loss) > SAME:
                other = f"loss {found:.4f}" if isinstance(found, float) else "unknown loss"
                raise UserError(
                    f"{self.path} is of a model of {other} on {domain}, and {source} has {loss:.4f}: {cure}."
                )


def read_evidence(path: Path) -> Evidence:
    """The result in a file that `intervene --json` wrote. Raises `UserError` for any other file."""
    cure = "give what python -m orchestrator.intervene --json wrote"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        check_shape("it", result, SHAPE)
        for layer in result["layers"]:
            check_shape("a layer", layer, {"damage": MAPPING})
            for edit, of_edit in layer["damage"].items():
                if of_edit is not None:
                    check_shape(f"the damage of {edit}", of_edit, dict.fromkeys(result["documents"], DAMAGE))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {cure}.") from error
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, ShapeError) else "it is not JSON"
        raise UserError(f"{path} is no evidence ({reason}): {cure}.") from error
    return Evidence(path, result)
