"""The error of every verdict, and the fewest pairs that can give one (SCIENCE §8)."""

ALPHA = 0.032  # two-sided error of a verdict: 0.05 less a reserve for skewed differences; six pairs can reach it


def smallest_p(n: int) -> float:
    """The smallest p that the sign-flip test can give with n pairs."""
    return min(1.0, 2.0 / 2.0**n)


FEWEST_PAIRS = next(n for n in range(1, 99) if smallest_p(n) <= ALPHA)  # of any verdict: one rule for all
