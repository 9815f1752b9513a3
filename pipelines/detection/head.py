"""What the first rows of a CSV file tell of its columns.

Unlike a schema that is inferred for a model, a column counts as numeric although some of its first rows are bad: those become
dead letters, the others are scored.
"""

from __future__ import annotations

import csv
import itertools
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from transforms.decoding.records import UnreadableFileError, as_text, whole_lines
from transforms.decoding.separators import as_commas
from transforms.decoding.values import NULL_WORDS

_ROWS = 1000
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_MOST = 0.5  # of the values that are there look like numbers in a numeric column


class Head(NamedTuple):
    """The columns of a file, those of them that are numeric, and how many of the first rows there are."""

    names: tuple[str, ...]
    numeric: tuple[str, ...]
    rows: int


def read_head(path: str) -> Head:
    """Looks at the first 1,000 rows of a CSV file; a file that cannot be read has no columns and no rows."""
    try:
        block = next(as_commas(whole_lines(path)), b"")
    except (UnreadableFileError, OSError):
        return Head((), (), 0)
    # Arrow gives up on a line with too many fields that is no UTF-8.
    text = b"\n".join(itertools.islice(block.split(b"\n"), 2 * _ROWS)).decode(errors="replace").encode()
    lines = [line for line in text.split(b"\n") if line.strip(b"\r")]
    if not lines:
        return Head((), (), 0)
    names = tuple(name.strip() for name in next(csv.reader([as_text(lines[0])])))
    places = [str(place) for place in range(len(names))]
    table = (
        pacsv.read_csv(
            pa.BufferReader(b"\n".join([*lines[1 : _ROWS + 1], b""])),
            read_options=pacsv.ReadOptions(column_names=places),
            parse_options=pacsv.ParseOptions(invalid_row_handler=lambda _: "skip"),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(places, pa.string())),
        )
        if len(lines) > 1
        else pa.table({place: pa.array([], pa.string()) for place in places})
    )
    numeric = []
    for name, place in zip(names, places, strict=True):
        values = table.column(place)
        there = values.filter(pc.invert(pc.is_in(values, pa.array([*NULL_WORDS, "NaN", "nan"]))))
        if len(there) and pc.mean(pc.match_substring_regex(there, _NUMBER).cast(pa.int8())).as_py() >= _MOST:
            numeric.append(name)
    return Head(names, tuple(numeric), len(lines) - 1)
