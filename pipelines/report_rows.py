"""Row numbers in a report, for streams whose records have no time: there a second since 1970 stands for a row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.parts import Parts
from transforms.batches import EVENT_TIME, ROW

_SECOND_US = 1_000_000
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?)?")
_TIMES = frozenset({"x", "x0", "x1", "range", "customdata"})  # of a figure, that may hold times


def counts_rows(output: str) -> bool:
    """Whether the time of a job's predictions is their row number; looks at the first of them."""
    parts = Parts(output, "predictions")
    if not parts.rows or ROW not in parts.types:
        return False
    batch = next(batch for batch in parts.batches([EVENT_TIME, ROW]) if batch.num_rows)
    times = batch.column(0).cast(pa.int64()).to_numpy()
    rows = batch.column(1).to_numpy(zero_copy_only=False)  # floats where some are null, which equal nothing
    return bool(np.array_equal(times, rows * _SECOND_US))


def in_rows(text: str | None) -> str | None:
    """A text with row numbers where it has times."""
    return None if text is None else _TIME.sub(lambda found: f"{_row(found.group()):,.10g}", text)


def figure_in_rows(figure: Any) -> Any:
    """A figure over time as one over row numbers."""
    import plotly.graph_objects as go

    told = figure.to_plotly_json()
    for name, axis in told["layout"].items():
        if name.startswith("xaxis") and axis.get("type") == "date":
            axis |= {"type": "linear", "tickformat": ",d"}
    return go.Figure(_converted(told, told=False))


def _converted(value: Any, told: bool) -> Any:
    """The same with numbers for times, and in longer texts their digits, below the keys `_TIMES`."""
    if isinstance(value, dict):
        return {key: _converted(part, told or key in _TIMES) for key, part in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_converted(part, told) for part in value]
    if told and isinstance(value, str):
        return _row(value) if _TIME.fullmatch(value) else in_rows(value)
    return value


def _row(time: str) -> float:
    return int(np.datetime64(time.replace(" ", "T"), "us").astype(np.int64)) / _SECOND_US
