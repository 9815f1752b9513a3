"""Notices that a model is wrong more often than it was: a reason to learn at once.

Labelled rows are looked at in chunks, in the order in which they are learnt. The newest chunk, and the newest few together, are
compared with the decayed rate of mistakes before them.

References:
    Gama, Medas, Castillo and Rodrigues, "Learning with drift detection", SBIA 2004: drift where the rate of mistakes is some
    standard deviations above what it was. Deviations: the rate before is decayed and not the lowest so far, and chunks are
    compared instead of everything since the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CHUNK_ROWS = 32
FEW_CHUNKS = 4
DEVIATIONS = 4.0
SPARE_MISTAKES = 2.0  # that are never a surprise
KEPT = 0.5 ** (1 / 40)  # of a chunk's weight with every chunk that follows
LEAST_CHUNKS = 12.0  # weight of what came before, below which nothing surprises


class Surprise(NamedTuple):
    """What was seen so far.

    Attributes:
        mistakes, chunks: decayed sum of mistakes, and weight in chunks, of all but the newest ones.
        newest: mistakes of the newest chunks, at the most `FEW_CHUNKS`, the last one last.
    """

    mistakes: float = 0.0
    chunks: float = 0.0
    newest: tuple[float, ...] = ()

    def after(self, mistakes: float) -> Surprise:
        """With one more chunk."""
        newest = (*self.newest, mistakes)
        if len(newest) <= FEW_CHUNKS:
            return self._replace(newest=newest)
        return Surprise(self.mistakes * KEPT + newest[0], self.chunks * KEPT + 1.0, newest[1:])

    @property
    def is_one(self) -> bool:
        """Whether there are too many mistakes in the newest chunks."""
        if self.chunks < LEAST_CHUNKS:
            return False
        rate = min(self.mistakes / (self.chunks * CHUNK_ROWS), 1.0)
        return self._too_many(self.newest[-1:], rate) or self._too_many(self.newest, rate)

    @staticmethod
    def _too_many(chunks: Sequence[float], rate: float) -> bool:
        rows = len(chunks) * CHUNK_ROWS
        return sum(chunks) > rows * rate + DEVIATIONS * (rows * rate * (1.0 - rate)) ** 0.5 + SPARE_MISTAKES
