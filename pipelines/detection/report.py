"""The report of a job that detects anomalies: the series with the strongest ones, drawn, and what each series had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.detection.graph import SCORES
from pipelines.page import Chart, time_text, write_page
from pipelines.parts import Parts
from pipelines.report_charts import LIGHT, iso
from transforms.batches import EVENT_TIME, SOURCE
from transforms.detection import ALARM, P_VALUE, SCORE

MAX_CHARTS = 12
MAX_SERIES = 500  # in the table
MAX_LINES = 4  # of a series with several columns
STRETCHES = 700  # that a line is drawn from: of each its lowest and its highest value
COLOURS = ("live", "frozen", "repeated", "bars")


def write_anomaly_report(
    outputs: Sequence[str], by: Sequence[str], title: str, counts: Mapping[str, Any], problems: Sequence[str], path: Path
) -> None:
    """Writes the report of a job.

    Args:
        outputs: the folders of its streams: the files of each have the same columns.
        by: columns that name a series; without any each file is one.
        title: heading of the page.
        counts: what came of the job.
        problems: what must not be overlooked.
        path: the file to write.

    Raises:
        OSError: the file cannot be written.
    """
    names = tuple(by) or (SOURCE,)
    streams = [parts for parts in (Parts(output, SCORES) for output in outputs) if parts.rows]
    rows = [(number, row) for number, parts in enumerate(streams) for row in _series(parts, names).to_pylist()]
    rows.sort(key=lambda entry: (-(entry[1]["alarms"] or 0), -(entry[1]["highest"] or 0.0), entry[1]["name"]))
    shown = rows[:MAX_CHARTS]
    drawn = [
        _rows_of(parts, names, [row["name"] for stream, row in shown if stream == number])
        for number, parts in enumerate(streams)
    ]
    charts = [
        _chart(number, drawn[stream][row["name"]], _values(streams[stream], names), row)
        for number, (stream, row) in enumerate(shown)
    ]
    write_page(
        "report_anomalies.html.j2",
        path,
        title=title,
        sentence=_sentence(counts, len(rows), sum(bool(row["alarms"]) for _, row in rows)),
        problems=problems,
        charts=charts,
        outputs=outputs,
        counts=counts,
        series=[{**row, "begin": time_text(row["begin"]), "end": time_text(row["end"])} for _, row in rows[:MAX_SERIES]],
        all_series=len(rows),
    )


def _named(batch: pa.RecordBatch | pa.Table, names: Sequence[str]) -> Any:
    """The name of each row's series."""
    columns = [pc.fill_null(batch.column(name).cast(pa.string()), "") for name in names]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, ", ")


def _series(parts: Parts, names: Sequence[str]) -> pa.Table:
    """A row for each series, in the order of their names: rows, alarms, the highest score, the first and the last time."""
    pieces = []
    for batch in parts.batches([*names, EVENT_TIME, SCORE, ALARM]):
        table = pa.table(
            {
                "name": _named(batch, names),
                "time": batch.column(EVENT_TIME).cast(pa.int64()),
                "score": batch.column(SCORE),
                "alarm": batch.column(ALARM).cast(pa.int64()),
            }
        )
        figures = [("time", "count"), ("alarm", "sum"), ("score", "max"), ("time", "min"), ("time", "max")]
        pieces.append(table.group_by("name").aggregate(figures))
    every = pa.concat_tables(pieces)
    sums = [("time_count", "sum"), ("alarm_sum", "sum"), ("score_max", "max"), ("time_min", "min"), ("time_max", "max")]
    given = every.group_by("name").aggregate(sums).sort_by("name")
    return pa.table(
        {
            "name": given.column("name"),
            "rows": given.column("time_count_sum"),
            "alarms": given.column("alarm_sum_sum"),
            "highest": given.column("score_max_max"),
            "begin": given.column("time_min_min"),
            "end": given.column("time_max_max"),
        }
    )


def _values(parts: Parts, names: Sequence[str]) -> list[str]:
    """The columns that were scored."""
    about = {*names, EVENT_TIME, SCORE, P_VALUE}
    return [name for name, kind in parts.types.items() if pa.types.is_floating(kind) and name not in about]


def _rows_of(parts: Parts, names: Sequence[str], chosen: Sequence[str]) -> dict[str, pa.Table]:
    """The rows of some series, in order of time; all are found in one go through the files."""
    if not chosen:
        return {}
    wanted = [*names, EVENT_TIME, SCORE, ALARM, *_values(parts, names)[:MAX_LINES]]
    pieces: dict[str, list[pa.Table]] = {name: [] for name in chosen}
    for batch in parts.batches(wanted):
        named = _named(batch, names)
        for name in pc.unique(named.filter(pc.is_in(named, pa.array(chosen)))).to_pylist():
            pieces[name].append(pa.Table.from_batches([batch]).filter(pc.equal(named, name)))
    return {name: pa.concat_tables(own).sort_by(EVENT_TIME) for name, own in pieces.items()}


def _chart(number: int, table: pa.Table, values: Sequence[str], row: Mapping[str, Any]) -> Chart:
    """The values of a series with its alarms; below, how high the scores went."""
    times = table.column(EVENT_TIME).cast(pa.int64()).to_numpy()
    score = table.column(SCORE).to_numpy()
    alarms = np.flatnonzero(pc.fill_null(table.column(ALARM), False).to_numpy())
    stretches = np.minimum(np.arange(len(times)) * STRETCHES // max(len(times), 1), STRETCHES - 1)
    figure = go.Figure()
    for column, colour in zip(values[:MAX_LINES], COLOURS, strict=False):
        line = table.column(column).to_numpy()
        places = _extremes(line, stretches)
        figure.add_scatter(
            x=iso(times[places]),
            y=_short(line[places]),
            name=column,
            mode="lines",
            line={"color": LIGHT[colour], "width": 1.4},
            hovertemplate="%{y}",
        )
    if len(alarms):
        # An alarm is about the row, not about one of its columns: each line that is drawn has its mark.
        marked = [table.column(column).to_numpy()[alarms] for column in values[:MAX_LINES]] or [np.zeros(len(alarms))]
        figure.add_scatter(
            x=iso(np.tile(times[alarms], len(marked))),
            y=_short(np.concatenate(marked)),
            name="alarm",
            mode="markers",
            marker={"color": LIGHT["bad"], "size": 9, "symbol": "circle-open", "line": {"width": 2, "color": LIGHT["bad"]}},
            customdata=_short(np.tile(score[alarms], len(marked))),
            hovertemplate="alarm, score %{customdata}",
        )
    highest = _extremes(np.where(np.isnan(score), 0.0, score), stretches)
    figure.add_scatter(
        x=iso(times[highest]),
        y=_short(score[highest]),
        name="score",
        yaxis="y2",
        mode="lines",
        line={"color": LIGHT["above"], "width": 1.2, "shape": "hv"},
        fill="tozeroy",
        hovertemplate="score %{y}",
    )
    figure.update_layout(
        yaxis={"domain": [0.26, 1]},
        yaxis2={"domain": [0, 0.18], "range": [0, 1.02], "fixedrange": True, "tickvals": [0, 1], "title": {"text": "score"}},
        xaxis={"anchor": "y2", "type": "date", "range": iso(times[[0, -1]])},
        hovermode="x unified",
        height=320,
        margin={"b": 44},  # the days stand below the hours
    )
    left = f" The first {MAX_LINES} of {len(values)} columns are drawn." if len(values) > MAX_LINES else ""
    alarmed = f"{row['alarms'] or 0:,} alarm{'s' * (row['alarms'] != 1)}"
    text = f"{row['rows']:,} row{'s' * (row['rows'] != 1)}, {alarmed}, highest score {row['highest'] or 0:.2f}.{left}"
    return Chart(f"series-{number}", row["name"] or "without a name", text, figure)


def _extremes(line: npt.NDArray[np.float64], stretches: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of each stretch where the line is lowest and where it is highest, in order; no peak gets lost."""
    some = np.flatnonzero(~np.isnan(line))
    order = some[np.lexsort((line[some], stretches[some]))]
    first = np.flatnonzero(np.diff(stretches[order], prepend=-1))
    last = np.append(first[1:], len(order)) - 1
    return np.unique(np.concatenate([order[first], order[last]])) if len(order) else order


def _sentence(counts: Mapping[str, Any], series: int, alarmed: int) -> str:
    text = f"{counts['scored']:,} rows of {series:,} series were scored, each by what was before it. "
    if not counts["alarms"]:
        return text + "None raised an alarm."
    return text + f"{counts['alarms']:,} alarm{'s' * (counts['alarms'] != 1)} in {alarmed:,} of them."


def _short(values: npt.NDArray[np.float64]) -> list[float | None]:
    """With five digits: the page need not be larger than what is seen."""
    return [None if np.isnan(value) else float(f"{value:.5g}") for value in values.tolist()]
