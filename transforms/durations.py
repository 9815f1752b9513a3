"""Durations as people write them, `30m` or `1h30m`, and as we count them, whole microseconds."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS_US = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_UNIT_NAMES = {"min": "m"}  # other spellings
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|min|[wdhms])\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Longer than any stream, and short enough that adding it to a watermark stays within int64.
_MAX_US = 2**61


def parse_duration(text: str | int | float) -> int:
    """Reads a duration.

    Args:
        text: `500ms`, `30m`, `1d`, `1h30m`, `1.5h` (units: us, ms, s, m or min, h, d, w), or a number of seconds.

    Returns:
        Whole microseconds, 0 or more.

    Raises:
        ValueError: it is not a duration, is negative, or is no whole number of microseconds.
    """
    wanted = f"expected a duration such as 500ms, 30m, 1h30m, 1d or a number of seconds; got {text!r}"
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(wanted)
    written = repr(text) if isinstance(text, float) else str(text)
    written = written.strip()
    if _NUMBER.fullmatch(written):
        written += "s"
    total, place = Fraction(0), 0
    for part in _PART.finditer(written):
        if part.start() != place:
            break
        number, unit = part.groups()
        total += Fraction(number) * _UNITS_US[_UNIT_NAMES.get(unit, unit)]
        place = part.end()
    if place != len(written) or not written:
        raise ValueError(wanted)
    if total.denominator != 1:
        raise ValueError(f"a duration is a whole number of microseconds; got {text!r}")
    if total > _MAX_US:
        raise ValueError(f"a duration is at most {format_duration(_MAX_US)}; got {text!r}")
    return int(total)


def format_duration(duration_us: int) -> str:
    """Writes a duration in the largest units that fit: `1h30m`, `-500ms`, `0s`. `parse_duration` reads it back."""
    if duration_us < 0:
        return "-" + format_duration(-duration_us)
    parts, rest = [], duration_us
    for unit, size in _UNITS_US.items():
        if unit == "w":  # days read better than weeks and days
            continue
        number, rest = divmod(rest, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"
