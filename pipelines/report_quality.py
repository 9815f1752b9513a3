"""What the report shows of the running evaluation and of the drift monitor: figures over the stream, swaps and drift marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.parts import Parts
from pipelines.report_charts import LIGHT, iso, time_range
from pipelines.report_data import Windows
from pipelines.report_learnt import PALETTE, LearntChart
from transforms.batches import EVENT_TIME

MAX_SEGMENTS = 12  # drawn, those with most records
MAX_COLUMNS = 40
MAX_POINTS = 10_000  # rows of a folder that are looked at; evenly spread over the stream where there are more
SHARES = {
    "accuracy": "accuracy",
    "faded": "accuracy, faded",
    "kappa": "kappa",
    "kappa_temporal": "kappa-temporal",
    "auc": "AUC",
}


def quality_charts(output: str, windows: Windows, activations: Sequence[Mapping[str, Any]]) -> list[LearntChart]:
    """The charts for which the job wrote something; none without `metrics/` and `drift/`.

    Args:
        output: the job's output folder.
        windows: those of the other charts.
        activations: entries of the activation log; `version` and `effective_from_us`.
    """
    charts = []
    metrics = _table(output, "metrics", (EVENT_TIME, "segment", "version", "rows", *SHARES, "log_loss", "rmse"))
    if metrics is not None:
        whole = metrics.filter(pc.is_null(metrics["version"]))
        overall = whole.filter(pc.is_null(whole["segment"]))
        drifts = _drift_times(output)
        for chart in (_figures(overall), _errors(overall)):
            if chart is not None:
                _mark(chart.figure, windows, activations, drifts)
                charts.append(chart)
        segments = whole.filter(pc.is_valid(whole["segment"]))
        if segments.num_rows:
            charts.append(_segments(segments, windows))
    drift = _table(output, "drift", (EVENT_TIME, "column", "role", "statistic", "distance", "p_value", "threshold", "alarm"))
    if drift is not None:
        charts.append(_monitor(drift, windows))
    return charts


def _table(output: str, folder: str, names: Sequence[str]) -> pa.Table | None:
    """The columns that are there, in order of time; None without rows."""
    parts = Parts(output, folder)
    if not parts.rows or EVENT_TIME not in parts.types:
        return None
    there = [name for name in names if name in parts.types]
    table = pa.Table.from_batches(parts.batches(there)).sort_by(EVENT_TIME)
    table = table.set_column(0, EVENT_TIME, table[EVENT_TIME].cast(pa.int64()))
    return table.take(np.linspace(0, table.num_rows - 1, MAX_POINTS).astype(np.int64)) if table.num_rows > MAX_POINTS else table


def _drift_times(output: str) -> list[int]:
    """When the learner noticed drift."""
    events = _table(output, "events", (EVENT_TIME, "kind"))
    if events is None or "kind" not in events.column_names:
        return []
    times: list[int] = events.filter(pc.equal(events["kind"], "drift"))[EVENT_TIME].to_pylist()
    return times


def _times(table: pa.Table) -> list[str]:
    return iso(table[EVENT_TIME].to_numpy())


def _figures(overall: pa.Table) -> LearntChart | None:
    lines = [name for name in SHARES if name in overall.column_names and overall[name].null_count < overall.num_rows]
    if "accuracy" not in lines:  # the label is a number, and `faded` is of another kind
        return None
    figure = go.Figure()
    for place, name in enumerate(lines):
        line = {"color": LIGHT["live"] if name == "accuracy" else PALETTE[place], "width": 2.4 if name == "accuracy" else 1.5}
        values = overall[name].to_pylist()
        figure.add_scatter(x=_times(overall), y=values, name=SHARES[name], line=line, hovertemplate="%{y:.3f}")
    figure.update_layout(hovermode="x unified")
    text = (
        "Each point is a window of evaluated records, each predicted before its label was known. Kappa is 0 for guessing by "
        "how frequent the classes are, kappa-temporal 0 for repeating the last known label. Ticks are swaps; a dashed line is "
        "where the learner noticed drift."
    )
    return LearntChart("quality", "The running evaluation", text, figure)


def _errors(overall: pa.Table) -> LearntChart | None:
    lines = [name for name in ("rmse", "log_loss") if name in overall.column_names]
    lines = [name for name in lines if overall[name].null_count < overall.num_rows]
    if not lines:
        return None
    figure = go.Figure()
    for name in lines:
        line = {"color": LIGHT["live"], "width": 2.4}
        label = {"rmse": "root mean square error", "log_loss": "log loss"}[name]
        figure.add_scatter(x=_times(overall), y=overall[name].to_pylist(), name=label, line=line, hovertemplate="%{y:.4g}")
    figure.update_layout(hovermode="x unified", yaxis={"rangemode": "tozero"}, showlegend=True)
    text = "How far the predictions were off in each window of evaluated records; lower is better. Ticks are swaps."
    return LearntChart("errors", "Errors over time", text, figure)


def _mark(figure: go.Figure, windows: Windows, activations: Sequence[Mapping[str, Any]], drifts: Sequence[int]) -> None:
    """Swaps as ticks at the bottom, drift as lines."""
    first, last = windows.edges_us[0], windows.edges_us[-1]
    swaps = [entry for entry in activations if first <= int(entry["effective_from_us"]) <= last]
    figure.add_scatter(
        x=iso(np.array([int(entry["effective_from_us"]) for entry in swaps], np.int64)),
        y=[0] * len(swaps),
        yaxis="y2",
        mode="markers",
        name="swap",
        showlegend=False,
        marker={"symbol": "line-ns-open", "size": 10, "color": LIGHT["swap-new"], "line": {"width": 1.2}},
        customdata=[escape(str(entry["version"])) for entry in swaps],
        hovertemplate="version %{customdata}<extra></extra>",
    )
    for time in iso(np.array(drifts, np.int64)):
        figure.add_shape(
            type="line",
            x0=time,
            x1=time,
            y0=0.12,
            y1=1,
            yref="paper",
            line={"color": LIGHT["above"], "width": 1.2, "dash": "dash"},
        )
    figure.update_layout(
        xaxis={"anchor": "y2", "range": time_range(windows), "type": "date"},
        yaxis={"domain": [0.12, 1]},
        yaxis2={"domain": [0, 0.06], "visible": False, "range": [-1, 1], "fixedrange": True},
    )


def _segments(metrics: pa.Table, windows: Windows) -> LearntChart:
    name = "accuracy" if metrics["accuracy"].null_count < metrics.num_rows else "rmse"
    counts = (
        metrics.group_by("segment").aggregate([("rows", "sum")]).sort_by([("rows_sum", "descending"), ("segment", "ascending")])
    )
    shown = sorted(counts["segment"].to_pylist()[:MAX_SEGMENTS])
    figure = go.Figure()
    for place, segment in enumerate(shown):
        own = metrics.filter(pc.equal(metrics["segment"], segment))
        line = {"color": PALETTE[place % len(PALETTE)], "width": 1.6}
        figure.add_scatter(
            x=_times(own),
            y=own[name].to_pylist(),
            name=escape(segment) or "without a value",
            line=line,
            hovertemplate="%{y:.3f}",
        )
    figure.update_layout(hovermode="x unified", xaxis={"range": time_range(windows), "type": "date"}, showlegend=True)
    text = f"The {name} of each segment of the records in each window; at most the {MAX_SEGMENTS} with most records."
    return LearntChart("segments", "Segments", text, figure)


def _monitor(drift: pa.Table, windows: Windows) -> LearntChart:
    """Distances from the training rows by column, with alarms."""
    columns = list(dict.fromkeys(drift["column"].to_pylist()))[:MAX_COLUMNS]
    figure, times = go.Figure(), iso(drift[EVENT_TIME].to_numpy())
    chosen = [place for place, name in enumerate(drift["column"].to_pylist()) if name in columns]
    rows = {name: place for place, name in enumerate(columns)}
    told = drift.to_pylist()
    figure.add_scatter(
        x=[times[place] for place in chosen],
        y=[rows[told[place]["column"]] for place in chosen],
        mode="markers",
        cliponaxis=False,
        name="window",
        marker={
            "symbol": ["x" if told[place]["alarm"] else "square" for place in chosen],
            "size": 10,
            "color": [LIGHT["above"] if told[place]["alarm"] else LIGHT["swap-old"] for place in chosen],
        },
        customdata=[
            (escape(told[place]["column"]), told[place]["statistic"], told[place]["distance"], told[place]["p_value"])
            for place in chosen
        ],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}: %{customdata[2]:.3f}, p = %{customdata[3]:.2g}"
        "<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        xaxis={"range": time_range(windows), "type": "date"},
        yaxis={
            "automargin": True,
            "tickvals": list(range(len(columns))),
            "ticktext": [escape(name) for name in columns],
            "autorange": "reversed",
        },
        height=max(90 + 30 * len(columns), 150),
        hovermode="closest",
    )
    text = (
        "Each mark is a window of predicted records, compared with the rows that its version was trained on; a cross is an "
        "alarm. The files in drift/ have the figures."
    )
    return LearntChart("monitor", "Beside the training rows", text, figure)
