"""From what a file holds to the declared types: vectorised, and with an exact account of the values that do not fit.

Every conversion here is elementwise: it raises if one value of an array does not fit, and gives the same value for an element
whatever the others are. So the values at fault are found by halving the array, and rows do not depend on how a file is cut up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.batches import TIME_TYPE
from transforms.decoding.records import BAD_TIME, NOT_FINITE, NULL_VALUE, UNPARSABLE
from transforms.schema import Column, TimeSpec

# Texts that stand for "no value" in columns that are not strings, as spreadsheets, pandas and R write them.
NULL_WORDS = ("", "NA", "N/A", "null", "NULL", "None")
TRUE_WORDS = ("true", "True", "TRUE", "1")
FALSE_WORDS = ("false", "False", "FALSE", "0")

# What every text that Arrow converts to these types looks like (and some that it does not).
_FLOAT = r"^[ \t]*[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?i:nan(?:\(.*\))?|inf(?:inity)?))[ \t]*$"
_INTEGER = r"^[ \t]*(?:-?[0-9]+|0[xX][0-9a-fA-F]+)[ \t]*$"
_SHAPES = {
    "float32": _FLOAT,
    "float64": _FLOAT,
    "int32": _INTEGER,
    "int64": _INTEGER,
    "timestamp": r"^[ \t]*[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "bool": rf"^[ \t]*(?:{'|'.join(TRUE_WORDS + FALSE_WORDS)})[ \t]*$",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
# The years that ISO 8601 and Python can name.
FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _US
LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _US
_SHOWN_CHARACTERS = 80


class Problem(NamedTuple):
    """Why the value at `position` cannot be used."""

    position: int
    reason: str
    detail: str


def checked(raw: pa.Array, column: Column) -> tuple[pa.Array, list[Problem]]:
    """Converts a column to its declared type and checks its values.

    Args:
        raw: the values as the format gives them.
        column: what is wanted.

    Returns:
        Values of type `column.arrow`, one for each of `raw` (anything where there is a problem), and the problems.
    """
    values, misfits = _converted(raw, column)
    problems = [Problem(p, UNPARSABLE, f"{_where(column)}, got {_shown(raw[p])}") for p in misfits]
    finite = column.base.startswith("float")
    if column.size:
        null, wild = _vector_faults(values, column, finite)
    else:
        null, wild = _scalar_faults(values, finite)
        if column.nullable:
            null = None
            if wild is not None:  # NaN counts as missing here
                wild = np.isinf(values.to_numpy(zero_copy_only=False))
                values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    known = set(misfits)
    for mask, reason in ((null, NULL_VALUE), (wild, NOT_FINITE)):
        for place in () if mask is None else np.flatnonzero(mask).tolist():
            if place not in known:
                got = "no value" if reason == NULL_VALUE else _shown(values[place])
                problems.append(Problem(place, reason, f"{_where(column)}, got {got}"))
    return values, problems


def _where(column: Column) -> str:
    return f"column {column.name!r}: expected {column.type_text.removesuffix('?')}"


def _shown(value: pa.Scalar) -> str:
    plain = value.as_py()
    if isinstance(plain, bytes):
        plain = plain.decode("utf-8", errors="replace")
    text = repr(plain)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _mask(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(bool)


def _scalar_faults(values: pa.Array, finite: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Masks of nulls and of NaN or infinity; None where there is none."""
    null = _mask(values.is_null()) if values.null_count else None
    if not finite:
        return null, None
    wild = ~np.isfinite(values.to_numpy(zero_copy_only=False))
    if null is not None:
        wild &= ~null
    return null, wild if wild.any() else None


def _vector_faults(values: pa.Array, column: Column, finite: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """As `_scalar_faults`; a null or NaN inside a vector is a fault even where the vector as a whole may be missing."""
    present = _mask(values.is_valid())
    masks: list[np.ndarray | None] = []
    for faulty in _scalar_faults(values.flatten(), finite):  # without the numbers of missing vectors
        mask = None
        if faulty is not None:
            mask = np.zeros(len(values), bool)
            mask[present] = faulty.reshape(-1, column.size).any(axis=1)
        masks.append(mask)
    null, wild = masks
    if not column.nullable and not present.all():
        null = ~present if null is None else null | ~present
    return null, wild


def _converted(raw: pa.Array, column: Column, screened: bool = False) -> tuple[pa.Array, list[int]]:
    """The values in the declared type, null where they do not fit, and the positions of those."""
    try:
        return convert(raw, column), []
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(raw), column.arrow), np.flatnonzero(_mask(raw.is_valid())).tolist()
    except pa.ArrowInvalid:
        if len(raw) == 1:
            return pa.nulls(1, column.arrow), [0]
    if not screened and _is_text(raw.type) and column.base in _SHAPES and not column.size:
        hopeless = _hopeless(raw, _SHAPES[column.base])
        values, misfits = _converted(pc.if_else(hopeless, pa.scalar(None, raw.type), raw), column, screened=True)
        return values, sorted(misfits + np.flatnonzero(_mask(hopeless)).tolist())
    middle = len(raw) // 2
    left, left_misfits = _converted(raw[:middle], column, screened)
    right, right_misfits = _converted(raw[middle:], column, screened)
    return pa.concat_arrays([left, right]), left_misfits + [middle + place for place in right_misfits]


def _hopeless(raw: pa.Array, shape: str) -> pa.Array:
    """Where texts are not even of the shape that conversion takes; finds most faults at once, before halving."""
    fine = pc.or_(pc.match_substring_regex(raw, shape), pc.is_in(raw, pa.array(NULL_WORDS, raw.type)))
    return pc.fill_null(pc.invert(fine), False)


def convert(raw: pa.Array, column: Column) -> pa.Array:
    """Converts an array to `column.arrow`, elementwise.

    Raises:
        pa.ArrowInvalid: at least one value does not fit.
        pa.ArrowNotImplementedError: no value of such a type ever fits.
    """
    if raw.type == column.arrow:
        return raw
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    if pa.types.is_null(raw.type):
        return pa.nulls(len(raw), column.arrow)
    if column.size:
        return _vectors(_split_numbers(raw) if _is_text(raw.type) else raw, column)
    if _is_list(raw.type):
        raw = _only_elements(raw)
    return _scalars(raw, column.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_string_view,
            pa.types.is_binary_view,
        )
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _scalars(raw: pa.Array, target: pa.DataType) -> pa.Array:
    if _is_text(raw.type):
        text = raw.cast(pa.string())  # raises on bytes that are not UTF-8
        return text if target == pa.string() else _parsed(text, target)
    if target == TIME_TYPE:
        if pa.types.is_timestamp(raw.type):
            # Finer than microseconds is cut off; coarser units are checked for overflow.
            return raw.cast(pa.timestamp("us", tz=raw.type.tz), safe=raw.type.unit != "ns").cast(TIME_TYPE)
        if pa.types.is_date(raw.type):
            return raw.cast(pa.timestamp("us")).cast(TIME_TYPE)
        raise pa.ArrowNotImplementedError(f"no times from {raw.type}")
    # Integers beyond 2**53 (2**24) are rounded to the float type that was asked for; other losses are refused.
    return raw.cast(target, safe=not (pa.types.is_floating(target) and pa.types.is_integer(raw.type)))


def _parsed(text: pa.Array, target: pa.DataType) -> pa.Array:
    missing = pc.is_in(text, pa.array(NULL_WORDS))
    if pc.any(missing).as_py():
        text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    text = pc.utf8_trim(text, " \t")
    if target == TIME_TYPE:
        return _parsed_iso(text)
    if target == pa.bool_():
        true = pc.is_in(text, pa.array(TRUE_WORDS))
        known = pc.or_(true, pc.is_in(text, pa.array([*FALSE_WORDS, None])))
        if not pc.all(known, min_count=0).as_py():
            raise pa.ArrowInvalid(f"expected one of {', '.join(TRUE_WORDS + FALSE_WORDS)}")
        return pc.if_else(text.is_valid(), true, pa.scalar(None, pa.bool_()))
    return text.cast(target)


def _parsed_iso(text: pa.Array) -> pa.Array:
    naive = pa.timestamp("us")
    try:
        return text.cast(naive).cast(TIME_TYPE)
    except pa.ArrowInvalid:
        pass
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")  # finer than microseconds
    zoned = pc.match_substring_regex(text, r"^.{10}.+(Z|[+-]\d\d(:?\d\d)?)$")
    nothing = pa.scalar(None, pa.string())
    with_zone = pc.if_else(zoned, text, nothing).cast(TIME_TYPE)
    return pc.coalesce(with_zone, pc.if_else(zoned, nothing, text).cast(naive).cast(TIME_TYPE))


def _split_numbers(raw: pa.Array) -> pa.Array:
    """`[1, 2.5]`, `1 2.5` and `1;2.5` as lists of texts; no text is no vector."""
    text = pc.utf8_trim(raw.cast(pa.string()), " \t\n[]()")
    text = pc.if_else(pc.is_in(text, pa.array(NULL_WORDS)), pa.scalar(None, pa.string()), text)
    return pc.split_pattern_regex(text, r"\s*[,;]\s*|\s+")


def _vectors(raw: pa.Array, column: Column) -> pa.Array:
    if not _is_list(raw.type):
        raise pa.ArrowNotImplementedError(f"no vectors from {raw.type}")
    lengths = pc.list_value_length(raw)
    if not pc.all(pc.equal(lengths, column.size), min_count=0).as_py():
        raise pa.ArrowInvalid(f"expected {column.size} numbers")
    numbers = _scalars(pc.list_flatten(raw), column.value_type)
    vectors = pa.FixedSizeListArray.from_arrays(numbers, type=column.arrow)
    return vectors if raw.null_count == 0 else _spread(vectors, _mask(raw.is_valid()))


def _only_elements(raw: pa.Array) -> pa.Array:
    """The single element of each list; null for an empty one, as tf.Example writes a missing value."""
    lengths = pc.fill_null(pc.list_value_length(raw), 0).to_numpy(zero_copy_only=False)
    if (lengths > 1).any():
        raise pa.ArrowInvalid("expected a single value")
    elements = pc.list_flatten(raw)
    return elements if len(elements) == len(raw) else _spread(elements, lengths == 1)


def _spread(values: pa.Array, present: np.ndarray) -> pa.Array:
    """Puts the values where `present`, null elsewhere."""
    return values.take(pa.array(np.cumsum(present) - 1, pa.int64(), mask=~present))


def event_times(values: pa.Array, time: TimeSpec) -> tuple[np.ndarray, list[Problem]]:
    """The event times of a converted time column: [n] int64 microseconds, and the problems (0 there)."""
    factor = time.us_per_unit
    microseconds = values
    if time.unit == "iso":
        microseconds = _converted(values, Column(str(time.column), "timestamp"))[0].cast(pa.int64())
    bad = _mask(microseconds.is_null())
    numbers = pc.fill_null(microseconds, 0).to_numpy(zero_copy_only=False)
    bad |= ~((numbers >= FIRST_US // factor) & (numbers <= LAST_US // factor))
    numbers = np.where(bad, 0, numbers)
    times = np.rint(numbers * factor).astype(np.int64) if numbers.dtype.kind == "f" else numbers.astype(np.int64) * factor
    expected = f"time column {time.column!r}: expected a time ({time.unit}) in the years 1 to 9999"
    return times, [Problem(p, BAD_TIME, f"{expected}, got {_shown(values[p])}") for p in np.flatnonzero(bad).tolist()]
