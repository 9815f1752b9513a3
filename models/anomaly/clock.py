"""Where in its season a moment lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PHASES = 48  # of a season: half hours of a day
DAY_US = 86_400_000_000
_MONDAY_DAYS = 4  # 1970-01-05 was a Monday


def phases(
    time_us: npt.NDArray[np.int64], season_us: int, weekends: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The phase of each moment, from 0 to PHASES - 1, and its kind of day: 1 on a weekend if that matters, else 0.

    Args:
        time_us: (rows,) microseconds since the epoch, of the clock that the season follows.
        season_us: length of the season, above 0.
        weekends: whether Saturdays and Sundays are of another kind.
    """
    phase = (np.mod(time_us, season_us) // max(season_us // PHASES, 1)).clip(0, PHASES - 1).astype(np.int32)
    weekday = np.mod(time_us // DAY_US - _MONDAY_DAYS, 7)
    return phase, (weekday >= 5).astype(np.int32) if weekends else np.zeros(len(phase), np.int32)
