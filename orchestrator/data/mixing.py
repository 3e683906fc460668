"""The order of training rows over all domains: seeded permutations, without any state to save."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from orchestrator.common.errors import UserError

SHORTEST_EPOCH = 1024
LONGEST_EPOCH = 2**20


def permutation(seed: int, stream: str, number: int, size: int) -> np.ndarray:
    """The `number`-th permutation of range(size) of a named random stream."""
    key = hashlib.sha256(f"{seed}/data/{stream}/{number}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little"))).permutation(size)


def apportion(total: int, weights: list[float]) -> list[int]:
    """`total` split into integers proportional to `weights`, by largest remainder; the first of equals wins."""
    relative = [weight / max(weights) for weight in weights]  # their sum cannot overflow
    shares = [total * weight / sum(relative) for weight in relative]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda k: counts[k] - shares[k])
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    return counts


class Mixture:
    """An endless sequence of epochs of `size` rows; `counts[k]` of them are domain k's. Epochs are shuffled.

    Domain k's rows come in the order of its own endless sequence of permutations, so that each is seen once before any
    is seen twice; an epoch's permutation only decides which domain is next. `rows`: the training rows of each domain;
    `weights`: its share of rows, and so of tokens. Raises `UserError` where a weight is too small for one row in an
    epoch.
    """

    def __init__(self, rows: dict[str, int], weights: dict[str, float]) -> None:
        self.rows, self.weights = rows, weights
        self.names = sorted(rows)  # so that the order of domains in the configuration does not matter
        total = sum(rows.values())
        self.size = min(total * -(-SHORTEST_EPOCH // total), LONGEST_EPOCH)
        self.counts = apportion(self.size, [weights[name] for name in self.names])
        for name, count in zip(self.names, self.counts, strict=True):
            if count == 0:
                raise UserError(
                    f"data.domains.{name}.weight={weights[name]} is less than one row in {self.size}: "
                    "raise the weight, or remove the domain."
                )
        # Pure functions of their arguments: evicting an entry costs only time.
        self._permutation = lru_cache(maxsize=2 * len(self.names))(permutation)
        self._epoch = lru_cache(maxsize=2)(self.epoch)

    def epoch(self, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The domain at each position of an epoch, and the count of that domain's rows before it; both [size]."""
        ordered = np.repeat(np.arange(len(self.names)), self.counts)
        turns = ordered[permutation(seed, "mix", number, self.size)]
        earlier = np.empty(self.size, dtype=np.int64)
        for k, count in enumerate(self.counts):
            earlier[turns == k] = np.arange(count)
        return turns, earlier

    def row_ids(self, seed: int, start: int, count: int) -> list[tuple[str, int]]:
        """(domain, row) of the run's rows `start` … `start + count`."""
        ids = []
        for n in range(start, start + count):
            number, place = divmod(n, self.size)
            turns, earlier = self._epoch(seed, number)
            k = int(turns[place])
            name = self.names[k]
            repeat, position = divmod(number * self.counts[k] + int(earlier[place]), self.rows[name])
            order = self._permutation(seed, f"domain/{name}", repeat, self.rows[name])
            ids.append((name, int(order[position])))
        return ids
