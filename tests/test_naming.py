"""`names` finds whole words in any order, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.naming import names, naming

TEXT = "Arm 'b': optim.lr=0.5 does not\n  fit 40 layers of /a/b.yaml (4.5%): lower optim.lr."


def test_words_are_found_in_any_order_and_over_a_fold() -> None:
    assert names(TEXT, "0.5", "optim.lr", "Arm 'b'", "does not fit", Path("/a/b.yaml"), "4.5%", "lower", 40)
    with pytest.raises(ValueError, match=naming("optim.lr", "Arm 'b'")):
        raise ValueError(TEXT)


@pytest.mark.parametrize("word", ["4", "5", "0", "optim.l", "rm 'b'", "0.", "fit 40 layer", "absent", "OPTIM.LR", ".+"])
def test_parts_of_words_and_of_numbers_are_not(word: str) -> None:
    assert not names(TEXT, "Arm 'b'", word)
