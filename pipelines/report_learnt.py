"""What the report shows of learners beyond accuracy: clusters and their lives, features and when they mattered.

Read from the job's own output (predictions, events) and from the versions themselves, which are the state at their time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from models.registry import Registry
from pipelines.parts import Parts
from pipelines.report_charts import LIGHT, iso, middles, time_range
from pipelines.report_data import Windows
from transforms.batches import EVENT_TIME

# Of middle lightness, to be seen on both pages; they come again from the eleventh cluster on.
PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a72c", "#ff7f9b", "#9c755f", "#6b8e9e")
MAX_CLUSTERS = 60  # drawn, the largest ones
MAX_PLACES = 60  # versions whose centres are drawn
MAX_FEATURES = 60
CLUSTER, FEATURE = "cluster", "feature"


@dataclass(frozen=True)
class LearntChart:
    """A figure with its words."""

    name: str
    title: str
    text: str
    figure: Any


def learnt_charts(
    output: str, windows: Windows, registry: str, model: str, versions: Sequence[Mapping[str, Any]]
) -> list[LearntChart]:
    """The charts that fit what was learnt; none for a learner that has neither clusters nor a selection.

    Args:
        output: the job's output folder.
        windows: those of the other charts.
        registry: root folder of the registry.
        model: name of the model.
        versions: the published versions, with `version` and `training`.
    """
    charts = []
    events = _events(output)
    predictions = Parts(output, "predictions")
    if CLUSTER in predictions.types:
        charts.append(_sizes(predictions, windows, events))
        charts += _places(registry, model, versions)
    if FEATURE in events and len(events[FEATURE]):
        features = Registry(registry).manifest(model, versions[-1]["version"]).signature.inputs
        charts.append(_selection(events, windows, tuple(features)))
    return charts


def _events(output: str) -> dict[str, list[Any]]:
    """The learner's events as columns, in order of time."""
    parts = Parts(output, "events")
    names = [name for name in (EVENT_TIME, "kind", CLUSTER, "other", FEATURE) if name in parts.types]
    if not parts.rows or "kind" not in names:
        return {}
    table = pa.Table.from_batches(parts.batches(names)).sort_by(EVENT_TIME)
    table = table.set_column(0, EVENT_TIME, table.column(EVENT_TIME).cast(pa.int64()))
    return {name: table.column(name).to_pylist() for name in names}


def _sizes(predictions: Parts, windows: Windows, events: Mapping[str, list[Any]]) -> LearntChart:
    """How many records each cluster had, stacked, with what happened to clusters on top."""
    counts: dict[int, npt.NDArray[np.int64]] = {}
    for batch in predictions.batches([EVENT_TIME, CLUSTER]):
        place = windows.of(batch.column(0).cast(pa.int64()).to_numpy())
        clusters = pc.fill_null(batch.column(1), -1).to_numpy()
        for cluster in np.unique(clusters).tolist():
            rows = np.bincount(place[clusters == cluster], minlength=windows.count)
            counts[cluster] = counts.get(cluster, np.zeros_like(rows)) + rows
    none = counts.pop(-1, None)
    shown = sorted(sorted(counts, key=lambda cluster: -int(counts[cluster].sum()))[:MAX_CLUSTERS])
    figure, times = go.Figure(), iso(middles(windows))
    layers = [(f"cluster {cluster}", counts[cluster], PALETTE[cluster % len(PALETTE)]) for cluster in shown]
    layers += [("none", none, LIGHT["cold"])] if none is not None else []
    for name, rows, colour in layers:
        figure.add_scatter(
            x=times, y=rows.tolist(), name=name, stackgroup="rows", line={"width": 0.5, "color": colour}, fillcolor=colour
        )
    if CLUSTER in events:
        top = float(np.sum([rows for _, rows, _ in layers], axis=0).max()) if layers else 1.0
        marks = {"born": "triangle-up", "died": "x", "split": "diamond", "merged": "circle"}
        for kind, symbol in marks.items():
            chosen = [place for place, was in enumerate(events["kind"]) if was == kind]
            figure.add_scatter(
                x=iso(np.array([events[EVENT_TIME][place] for place in chosen], np.int64)),
                y=[1.04 * top] * len(chosen),
                name=kind,
                mode="markers",
                marker={"symbol": symbol, "size": 8, "color": LIGHT["ink"]},
                customdata=[_told(kind, events[CLUSTER][place], events["other"][place]) for place in chosen],
                hovertemplate="%{customdata}<extra></extra>",
            )
    figure.update_layout(
        xaxis={"range": time_range(windows), "type": "date"},
        yaxis={"rangemode": "tozero", "title": {"text": "records"}},
        showlegend=len(layers) <= 25,
    )
    text = (
        "How many records each cluster was given in each stretch of the stream; a colour stays with a cluster for its life. "
        "Grey records belonged to none, or came before the first version. The marks above are births, deaths, splits and "
        "merges."
    )
    return LearntChart("clusters", "Clusters over time", text, figure)


def _told(kind: str, cluster: int, other: int) -> str:
    others = {"split": f"{other} split off from {cluster}", "merged": f"{other} merged into {cluster}"}
    return others.get(kind, f"{cluster} {kind}")


def _places(registry: str, model: str, versions: Sequence[Mapping[str, Any]]) -> list[LearntChart]:
    """Where the clusters went: their centres, projected to the plane in which they are farthest apart."""
    from models.learners.cluster_tables import read_saved
    from models.loaded_graph import variables_prefix
    from models.registry import Registry

    numbers = sorted(int(entry["version"]) for entry in versions if entry.get("training"))
    chosen = [numbers[at] for at in np.unique(np.linspace(0, len(numbers) - 1, MAX_PLACES).astype(int))] if numbers else []
    ids, means, weights = [], [], []
    for version in chosen:
        try:
            values = read_saved(variables_prefix(Registry(registry).path(model, version)))
        except ValueError:
            return []  # clusters of another learner
        alive = values["id"] >= 0
        deviation = np.sqrt(values["column_variance"]) + 1e-12
        ids.append(values["id"][alive])
        means.append(values["mean"][alive] / deviation)
        weights.append(values["weight"][alive])
    if not ids or not len(np.concatenate(ids)):
        return []
    names, points = np.concatenate(ids), np.concatenate(means)
    middle = points.mean(axis=0)
    _, _, axes = np.linalg.svd(points - middle, full_matrices=False)
    plane = axes[:2] if len(axes) > 1 else np.vstack([axes, np.zeros_like(axes)])
    flat = (points - middle) @ plane.T
    latest = dict(zip(ids[-1].tolist(), weights[-1].tolist(), strict=True))
    heaviest = max(latest.values(), default=1.0)
    figure = go.Figure()
    for cluster in np.unique(names).tolist()[-MAX_CLUSTERS:]:
        path, colour = flat[names == cluster], PALETTE[cluster % len(PALETTE)]
        size = 8 + 26 * (latest.get(cluster, 0.0) / heaviest) ** 0.5
        figure.add_scatter(
            x=np.round(path[:, 0], 4).tolist(),
            y=np.round(path[:, 1], 4).tolist(),
            name=f"cluster {cluster}",
            mode="lines+markers",
            line={"width": 1.5, "color": colour},
            marker={
                "color": colour,
                "size": [3] * (len(path) - 1) + [size if cluster in latest else 7],
                "symbol": ["circle"] * (len(path) - 1) + ["circle" if cluster in latest else "x"],
            },
            hovertemplate=f"cluster {cluster}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": {"text": ""}}, yaxis={"scaleanchor": "x"}, showlegend=False)
    text = (
        "The paths of the clusters' centres, in the plane in which they are farthest apart (principal components of the "
        "centres, in standard units). A disc is a cluster that lives at the end, the larger the more records it has had "
        "lately; a cross is where one was last."
    )
    return [LearntChart("places", "Where the clusters went", text, figure)]


def _selection(events: Mapping[str, list[Any]], windows: Windows, features: Sequence[str]) -> LearntChart:
    """When each feature was selected, as bars. All are let through until enough is known; then some are dropped."""
    end = windows.start_us + windows.width_us * windows.count
    spans: dict[str, list[tuple[int, int]]] = {}
    since: dict[str, int] = {}
    if "dropped" in events["kind"]:
        known = events[EVENT_TIME][events["kind"].index("dropped")]
        at_once = {name for time, name in zip(events[EVENT_TIME], events[FEATURE], strict=True) if time <= known}
        since = {name: known for name in features if name not in at_once}
    for time, kind, feature in zip(events[EVENT_TIME], events["kind"], events[FEATURE], strict=True):
        if kind == "selected":
            since[feature] = time
        elif feature in since:
            spans.setdefault(feature, []).append((since.pop(feature), time))
    for feature, start in since.items():
        spans.setdefault(feature, []).append((start, max(end, start)))
    longest = sorted(spans, key=lambda name: -sum(stop - start for start, stop in spans[name]))[:MAX_FEATURES]
    order = sorted(longest, key=lambda name: spans[name][0][0], reverse=True)
    figure = go.Figure()
    for feature in order:
        times = [moment for start, stop in spans[feature] for moment in (start, stop, stop)]
        gaps = [None if place % 3 == 2 else escape(feature) for place in range(len(times))]
        figure.add_scatter(
            x=iso(np.array(times, np.int64)),
            y=gaps,
            mode="lines",
            line={"width": 9, "color": LIGHT["live"]},
            hovertemplate="%{y}: %{x}<extra></extra>",
            showlegend=False,
        )
    figure.update_layout(
        xaxis={"range": time_range(windows), "type": "date"},
        yaxis={"type": "category", "automargin": True},
        margin={"l": 120},
        height=max(300, 22 * len(order) + 80),
    )
    text = (
        "Each bar is a time in which a version had the feature selected; the classifier sees no other. Before enough was known "
        "to select, all were let through. What is not there was never selected."
    )
    return LearntChart("selection", "Which features mattered when", text, figure)
