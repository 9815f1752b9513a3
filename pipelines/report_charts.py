"""The charts of the report as Plotly figures.

They are drawn in the colours of `LIGHT`; in the dark the page replaces each by that of the same name in `DARK`. Text that a
user chose reaches Plotly, which understands some HTML, only through `escape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from pipelines.report_data import Accuracy, Drift, Measured, Scores, Windows

MAX_MARKS = 2_000  # beyond, marks lie on one another on any screen
MAX_DRIFT_ROWS = 30
MAX_NAME_LETTERS = 28
_FEW_VERSIONS = 8  # the axis names each of them
DRIFT_LIMIT = 3.0  # standard deviations at which the colour is full

# By name, so that the page's style sheet uses the same ones. All distinct: a colour stands for its name.
LIGHT = {
    "page": "#f6f7f9",
    "panel": "#ffffff",
    "ink": "#16202e",
    "soft": "#5b6778",
    "rule": "#e3e7ee",
    "live": "#1668d6",
    "frozen": "#d9822b",
    "repeated": "#8b96a6",
    "lead": "rgba(22,104,214,0.13)",
    "bars": "#8fb7ec",
    "cold": "#c7cdd6",
    "swap-old": "#bcd3f2",
    "swap-new": "#0b3f8a",
    "below": "#1f6fb5",
    "steady": "#f3f4f6",
    "above": "#c8452f",
    "good": "#177a4b",
    "bad": "#b3261e",
    "bad-panel": "#fdecea",
}
DARK = {
    "page": "#0e131b",
    "panel": "#161d28",
    "ink": "#e8edf4",
    "soft": "#9aa7b8",
    "rule": "#283243",
    "live": "#62a5ff",
    "frozen": "#f0a04b",
    "repeated": "#78869a",
    "lead": "rgba(98,165,255,0.16)",
    "bars": "#3a659c",
    "cold": "#49556a",
    "swap-old": "#2d4a74",
    "swap-new": "#a9cdff",
    "below": "#4a9be8",
    "steady": "#1c2431",
    "above": "#ee6a50",
    "good": "#4cc38a",
    "bad": "#ff8a80",
    "bad-panel": "#3a1b1b",
}
_SPAN = "%{customdata[0]} to %{customdata[1]}"


def accuracy_chart(measured: Measured, accuracy: Accuracy, activations: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Accuracy over time: live, frozen, and the last known label repeated; below, a mark at every swap."""
    some = np.flatnonzero(accuracy.evaluated)
    counts = accuracy.evaluated[some]
    times = middles(measured.windows)[some]
    spans = [
        (*_span(measured.windows, place), _versions(measured, place), f"{accuracy.evaluated[place]:,}")
        for place in some.tolist()
    ]
    figure = go.Figure()
    repeated = accuracy.right_persistent[some] / counts
    line = {"color": LIGHT["repeated"], "width": 1.2, "dash": "dot"}
    figure.add_scatter(x=iso(times), y=_short(repeated), name="last known label repeated", line=line, hovertemplate="%{y:.1%}")
    if accuracy.right_frozen is not None:
        frozen = accuracy.right_frozen[some] / counts
        line = {"color": LIGHT["frozen"], "width": 2}
        figure.add_scatter(x=iso(times), y=_short(frozen), name="first version, frozen", line=line, hovertemplate="%{y:.1%}")
    figure.add_scatter(
        x=iso(times),
        y=_short(accuracy.right[some] / counts),
        name="live model",
        line={"color": LIGHT["live"], "width": 2.6},
        fill=None if accuracy.right_frozen is None else "tonexty",
        fillcolor=LIGHT["lead"],
        customdata=spans,
        hovertemplate="<b>%{y:.1%}</b> by %{customdata[2]}<br>%{customdata[3]} evaluated, " + _SPAN,
    )
    limits = _accuracy_range([line.y for line in figure.data], measured.cold[some] == 0)
    _add_swaps(figure, measured, activations)
    _shade_cold_start(figure, measured)
    figure.update_layout(
        yaxis={"tickformat": ".0%", "domain": [0.17, 1], "range": limits},
        yaxis2={"domain": [0, 0.07], "visible": False, "range": [-1, 1], "fixedrange": True},
        xaxis={"anchor": "y2", "range": time_range(measured.windows), "type": "date"},
        hovermode="x unified",
    )
    figure.add_annotation(
        text="swaps", x=0, y=0.08, xref="paper", yref="paper", yanchor="bottom", xanchor="left", showarrow=False
    )
    return figure


def _accuracy_range(lines: Sequence[Sequence[float]], warm: npt.NDArray[np.bool_]) -> list[float]:
    """The range that shows the lines well, the windows of the cold start, where all is wrong, left out if others are there."""
    values = np.array(lines)
    values = values[:, warm] if warm.any() else values
    margin = 0.05 * (values.max() - values.min()) + 0.01
    return [max(float(values.min() - margin), -0.02), min(float(values.max() + margin), 1.02)]


def _shade_cold_start(figure: go.Figure, measured: Measured) -> None:
    starts, _ = _swaps(measured)
    if not measured.cold.any() or not len(starts) or starts[0] <= measured.windows.start_us:
        return
    start, end = iso(np.array([measured.windows.start_us, starts[0]]))
    figure.add_shape(
        type="rect", x0=start, x1=end, y0=0.17, y1=1, yref="paper", layer="below", line={"width": 0}, fillcolor=LIGHT["cold"]
    )


def _add_swaps(figure: go.Figure, measured: Measured, activations: Sequence[Mapping[str, Any]]) -> None:
    starts, versions = _swaps(measured)
    why = {int(entry["version"]): entry for entry in activations}
    details = []
    for version in versions.tolist():
        entry = why.get(version, {})
        details.append((version, escape(str(entry.get("reason") or "")), escape(str(entry.get("by") or "unknown"))))
    figure.add_scatter(
        x=iso(starts),
        y=[0] * len(starts),
        yaxis="y2",
        mode="markers",
        name="swap",
        showlegend=False,
        marker={
            "symbol": "line-ns-open",
            "size": 15,
            "color": [version for version, _, _ in details],
            "colorscale": [[0, LIGHT["swap-old"]], [1, LIGHT["swap-new"]]],
            "line": {"width": 1.2},
        },
        customdata=details,
        hovertemplate="<b>version %{customdata[0]}</b> from %{x|%d %b %Y %H:%M:%S}<br>"
        "%{customdata[1]}<br>by %{customdata[2]}<extra></extra>",
    )


def lead_chart(measured: Measured, accuracy: Accuracy) -> go.Figure | None:
    """How many more records the live model got right than the first version would have, summed up over time."""
    if accuracy.right_frozen is None:
        return None
    lead = np.cumsum(accuracy.right - accuracy.right_frozen)
    figure = go.Figure()
    figure.add_scatter(
        x=iso(measured.windows.edges_us[1:]),
        y=lead.tolist(),
        fill="tozeroy",
        fillcolor=LIGHT["lead"],
        line={"color": LIGHT["live"], "width": 2.4},
        name="more records right",
        hovertemplate="<b>%{y:+,}</b> records by %{x|%d %b %Y %H:%M}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"range": time_range(measured.windows), "type": "date"},
        yaxis={"tickformat": "+,d"},
        showlegend=False,
        hovermode="x",
        height=300,
        margin={"t": 8},
    )
    return figure


def drift_chart(windows: Windows, drift: Drift) -> go.Figure | None:
    """A heatmap: how far each mean has moved from the start of the stream; at most the rows that moved most."""
    if not drift.names:
        return None
    moved = np.nan_to_num(np.abs(drift.shifts)).max(axis=1)
    rows = np.sort(np.argsort(-moved, kind="stable")[:MAX_DRIFT_ROWS])
    names = [_name(drift.names[row]) for row in rows]
    limit = float(np.clip(moved[rows].max(), 1.0, DRIFT_LIMIT))
    figure = go.Figure()
    figure.add_heatmap(
        x=iso(middles(windows)),
        y=list(range(len(rows))),
        z=[_short(row, 3) for row in drift.shifts[rows]],
        customdata=[
            [(name, *_span(windows, place), f"{mean:,.4g}") for place, mean in enumerate(means)]
            for name, means in zip(names, drift.means[rows], strict=True)
        ],
        zmin=-limit,
        zmax=limit,
        colorscale=[[0, LIGHT["below"]], [0.5, LIGHT["steady"]], [1, LIGHT["above"]]],
        ygap=2,
        hovertemplate="<b>%{customdata[0]}</b><br>mean %{customdata[3]}: %{z:+.2f} standard deviations from the start<br>"
        "%{customdata[1]} to %{customdata[2]}<extra></extra>",
        colorbar={
            "orientation": "h", "thickness": 10, "len": 0.5, "y": 1.01, "yanchor": "bottom", "x": 0.96, "xanchor": "right",
            "outlinewidth": 0, "ticklen": 0, "tickangle": 0, "tickvals": [-limit, 0, limit],
            "ticktext": [f"-{limit:.2g} sd", "start", f"+{limit:.2g} sd"],
        },
    )  # fmt: skip
    figure.update_layout(
        xaxis={"range": time_range(windows), "type": "date", "showgrid": False},
        yaxis={
            "automargin": True,
            "tickvals": list(range(len(rows))),
            "ticktext": names,
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
        height=max(90 + 30 * len(rows), 150),  # below that the axis is cut off
        hovermode="closest",
    )
    return figure


def versions_chart(measured: Measured) -> go.Figure:
    """Which version predicted when, as a staircase, and below it how many records."""
    starts, versions = _swaps(measured)
    times, numbers = iso(starts), versions.tolist()
    end = int(measured.windows.edges_us[-1])
    figure = go.Figure()
    figure.add_scatter(
        x=[*times, *iso(np.array([end]))] if times else [],
        y=[*numbers, numbers[-1]] if numbers else [],
        line={"shape": "hv", "color": LIGHT["live"], "width": 2},
        name="version",
        hovertemplate="<b>version %{y}</b> from %{x|%d %b %Y %H:%M}<extra></extra>",
        showlegend=False,
    )
    back = [place for place in range(1, len(numbers)) if numbers[place] < numbers[place - 1]]
    if back:
        figure.add_scatter(
            x=[times[place] for place in back],
            y=[numbers[place] for place in back],
            mode="markers",
            marker={"color": LIGHT["bad"], "size": 10, "symbol": "diamond"},
            name="back to an earlier version",
            customdata=[numbers[place - 1] for place in back],
            hovertemplate="<b>from %{customdata} back to %{y}</b> at %{x|%d %b %Y %H:%M}<extra></extra>",
        )
    filled = np.flatnonzero(measured.rows)
    spans = [(*_span(measured.windows, place), _versions(measured, place)) for place in filled.tolist()]
    x = iso(middles(measured.windows)[filled])
    kinds = (
        ("predicted", LIGHT["bars"], measured.rows - measured.cold),
        ("cold start: no version live yet", LIGHT["cold"], measured.cold),
    )
    for name, colour, rows in kinds:
        if name == "predicted" or rows.any():
            figure.add_bar(
                x=x,
                y=rows[filled].tolist(),
                name=name,
                marker={"color": colour},
                yaxis="y2",
                customdata=spans,
                hovertemplate="<b>%{y:,}</b> records by %{customdata[2]}<br>" + _SPAN + "<extra></extra>",
            )
    figure.update_layout(
        yaxis={"domain": [0.38, 1], "title": {"text": "version"}, "tickformat": "d"}
        | ({"dtick": 1} if numbers and max(numbers) - min(numbers) < _FEW_VERSIONS else {}),
        yaxis2={"domain": [0, 0.28], "title": {"text": "records"}, "rangemode": "tozero", "nticks": 4},
        xaxis={"anchor": "y2", "range": time_range(measured.windows), "type": "date"},
        barmode="stack",
        bargap=0.15,
        hovermode="closest",
    )
    return figure


def scores_chart(windows: Windows, scores: Scores) -> go.Figure:
    """How the model's scores were spread, window by window."""
    shares = scores.rows / np.maximum(scores.rows.sum(axis=1, keepdims=True), 1)
    of_bins = (scores.edges[1:] + scores.edges[:-1]) / 2
    figure = go.Figure()
    figure.add_heatmap(
        x=iso(middles(windows)),
        y=_short(of_bins),
        z=[_short(row) for row in shares.T],
        colorscale=[[0, LIGHT["panel"]], [0.35, LIGHT["bars"]], [1, LIGHT["live"]]],
        zmin=0,
        zmax=float(max(np.quantile(shares, 0.99), 1e-6)),
        showscale=False,
        hovertemplate="score about %{y:.3~f}: <b>%{z:.1%}</b> of the records around %{x|%d %b %Y %H:%M}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"range": time_range(windows), "type": "date", "showgrid": False},
        yaxis={"title": {"text": "score"}, "showgrid": False},
        hovermode="closest",
    )
    return figure


def _swaps(measured: Measured) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """When which version began to predict, the first one included; evenly thinned out where there are too many to see."""
    live = np.flatnonzero(measured.runs.versions)
    if len(live) > MAX_MARKS:
        live = live[np.linspace(0, len(live) - 1, MAX_MARKS).astype(int)]
    return measured.runs.from_us[live], measured.runs.versions[live]


def _versions(measured: Measured, place: int) -> str:
    low, high = int(measured.lowest[place]), int(measured.highest[place])
    if not measured.rows[place]:
        return "no version"
    if high == 0:
        return "no version (cold start)"
    if low == high:
        return f"version {low}"
    return f"versions {low} to {high}" if low else f"versions up to {high}, after the cold start"


def middles(windows: Windows) -> npt.NDArray[np.int64]:
    """The middle of each window, in microseconds."""
    return windows.edges_us[:-1] + windows.width_us // 2


def _span(windows: Windows, place: int) -> tuple[str, str]:
    start, end = (text.replace("T", " ") for text in iso(windows.edges_us[place : place + 2]))
    return start, end


def time_range(windows: Windows) -> list[str]:
    """Where the windows begin and end, for an axis."""
    return iso(windows.edges_us[[0, -1]])


def iso(times_us: npt.NDArray[np.int64]) -> list[str]:
    """Times as Plotly reads them, to the millisecond, which is as fine as its axes are."""
    texts = np.datetime_as_string(times_us.astype("datetime64[us]"), unit="ms").tolist()
    return [text.removesuffix(".000").removesuffix(":00") for text in texts]


def _short(values: npt.NDArray[np.float64], digits: int = 4) -> list[float | None]:
    """Rounded, as the page need not hold 17 digits; what is not finite becomes null."""
    return [value if np.isfinite(value) else None for value in np.round(values, digits).tolist()]


def _name(text: str) -> str:
    return escape(text if len(text) <= MAX_NAME_LETTERS else text[: MAX_NAME_LETTERS - 1] + "…")
