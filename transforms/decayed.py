"""Decayed sums along a stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Doubles = npt.NDArray[np.float64]


def decayed_sums(values: Doubles, before: Doubles, kept: float) -> Doubles:
    """The sum behind each row, of which a share `kept` is left at the next one.

    One row after the other, with the same rounding however the stream is cut.

    Args:
        values: (rows, ...).
        before: (...), the sum before the first row.
        kept: from 0 to 1.
    """
    return lfilter([1.0], [1.0, -kept], values, axis=0, zi=(kept * before)[None])[0]
