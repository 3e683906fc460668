"""The names of the edits that interventions make, one line each, and their words in tables (SCIENCE §9).

The function of the same name in `orchestrator/interventions/edits.py` makes it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class EditName(StrEnum):
    """An edit, the head of its column, and its meaning where the head does not say it."""

    heading: str
    meaning: str

    def __new__(cls, name: str, heading: str, meaning: str = "") -> Self:
        self = str.__new__(cls, name)
        self._value_, self.heading, self.meaning = name, heading, meaning
        return self

    delete = "delete", "−layer"
    delete_attention = "delete_attention", "−attention"
    delete_ffn = "delete_ffn", "−FFN"
    delete_compensated = "delete_compensated", "−layer ×", "deleted, the stream lengthened as the layer did"
    write_mean = "write_mean", "mean write", "the layer's mean write in its place"
    repeat = "repeat", "twice", "the layer run twice"
    swap = "swap", "⇄ next", "run after the next layer"
    zero_saturated = "zero_saturated", "−saturated", "its saturated FFN positions zero"
    zero_random = "zero_random", "−random", "as many others"
    zero_as_loud = "zero_as_loud", "−as loud", "as many others that write as much"
