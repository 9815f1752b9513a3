"""The report of a job that learns or predicts: what its predictions were worth, and which versions made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.timeline import TRIALS
from pipelines.page import Chart, time_text, write_page
from pipelines.report_charts import accuracy_chart, drift_chart, lead_chart, scores_chart, versions_chart
from pipelines.report_data import BASELINE_SHARE, Measured, measure
from pipelines.report_learnt import learnt_charts
from pipelines.report_quality import quality_charts
from pipelines.report_rows import counts_rows, figure_in_rows, in_rows
from pipelines.summary import Summary

MAX_VERSION_ROWS = 1_000
DIGEST_LETTERS = 8

# Heading, and in plain words what one sees.
_TEXTS = {
    "accuracy": (
        "Accuracy over time",
        "Each point is the share of right predictions in one stretch of the stream. The dotted line repeats whichever "
        "label was known last: a model that stays below it has learnt little. Each tick in the strip at the bottom is a "
        "swap; its colour follows the version. Grey is the cold start, before any version was live.",
    ),
    "lead": (
        "What swapping was worth",
        "Records that the live model got right minus those its frozen first version would have got right, added up "
        "along the stream. Where the curve climbs, new versions pay; where it is flat, the first one would have done.",
    ),
    "drift": (
        "Drift",
        f"How far each mean has moved from the first {BASELINE_SHARE:.0%} of the stream, in standard deviations (sd) of "
        "that start, or of the whole stream where nothing varied at the start. Red is above, blue below.",
    ),
    "versions": (
        "Which version predicted what",
        "Above, the version that was live: each step up is a swap inside the running stream, a step down a rollback. "
        "Below, how many records were predicted in each stretch.",
    ),
    "scores": (
        "Scores over time",
        "How the scores that the model gave were spread in each stretch: the stronger the colour, the more records. A "
        "band that moves or changes its width means that the model sees other data, or has become another.",
    ),
}

_GAP_TEXT = " The shaded gap is what replacing the model was worth against keeping its first version."


def write_report(
    output: str,
    summary: Summary,
    versions: Sequence[Mapping[str, Any]],
    activations: Sequence[Mapping[str, Any]],
    title: str,
    label: str | None,
    path: str,
    learner: tuple[str, str] | None = None,
) -> None:
    """Writes the report of a job.

    Args:
        output: the job's output folder.
        summary: its summary.
        versions: the published versions; of each `version`, and where known `training`, `metrics`, `digest`.
        activations: entries of the activation log; `version`, `effective_from_us`, `reason`, `by`.
        title: heading of the page.
        label: name of the label column in the evaluations; None for a job without labels.
        learner: registry and model of a job that learns; what the learner has to show beside accuracy is then shown, too.
        path: the file to write. Replaced in one step: a reader sees the old page or the new one.

    Raises:
        ValueError: a file of the output lacks a column.
        OSError: the file cannot be written.
    """
    measured = measure(output, label)
    charts = [] if measured is None else _charts(measured, activations)
    if measured is not None and learner is not None:
        own = learnt_charts(output, measured.windows, *learner, versions)
        charts = [Chart(chart.name, chart.title, chart.text, chart.figure) for chart in own] + charts
    if measured is not None:
        found = quality_charts(output, measured.windows, activations)
        charts[1:1] = [Chart(chart.name, chart.title, chart.text, chart.figure) for chart in found]
    version_rows, decisions = _version_rows(versions, activations, measured), _decisions(activations)
    if measured is not None and counts_rows(output):
        charts = [replace(chart, figure=figure_in_rows(chart.figure)) for chart in charts]
        version_rows = [row | {key: in_rows(row[key]) for key in ("live_from", "window")} for row in version_rows]
        decisions = [row | {"time": in_rows(row["time"])} for row in decisions]
    write_page(
        "report.html.j2",
        Path(path),
        title=title,
        sentence=_sentence(summary),
        problems=summary.problems(),
        charts=charts,
        outputs=[output],
        summary=summary,
        more_right=_more_right(summary),
        versions=version_rows,
        decisions=decisions,
        versions_left_out=max(len(versions) - MAX_VERSION_ROWS, 0),
    )


def _charts(measured: Measured, activations: Sequence[Mapping[str, Any]]) -> list[Chart]:
    accuracy, scores = measured.accuracy, measured.scores
    drawn = {
        "accuracy": None if accuracy is None else accuracy_chart(measured, accuracy, activations),
        "lead": None if accuracy is None else lead_chart(measured, accuracy),
        "drift": drift_chart(measured.windows, measured.drift),
        "versions": versions_chart(measured),
        "scores": None if scores is None else scores_chart(measured.windows, scores),
    }
    charts = [Chart(name, *_TEXTS[name], figure) for name, figure in drawn.items() if figure is not None]
    if accuracy is not None and accuracy.right_frozen is not None:
        charts[0] = replace(charts[0], text=charts[0].text + _GAP_TEXT)
    return charts


def _sentence(summary: Summary) -> str:
    """The run in one or two sentences."""
    if not summary.predictions:
        return f"No record was predicted; {summary.records:,} came in."
    count = f"{summary.predictions:,} record{'s' * (summary.predictions != 1)}"
    if summary.swaps:
        times = "once" if summary.swaps == 1 else f"{summary.swaps:,} times"
        text = f"While {count} flowed through, the model was replaced {times} without stopping the stream."
    elif summary.cold_start == summary.predictions:
        text = f"{count} flowed through before any version was live."
    else:
        text = f"{count} flowed through, all predicted by one version."
    if summary.accuracy is None:
        return text
    text += f" The live model got {summary.accuracy:.1%} right"
    if summary.accuracy_frozen is None:
        return text + "."
    return text + f"; its first version, left as it was, would have got {summary.accuracy_frozen:.1%}."


def _more_right(summary: Summary) -> int | None:
    if summary.accuracy is None or summary.accuracy_frozen is None:
        return None
    return round((summary.accuracy - summary.accuracy_frozen) * summary.evaluated)


def _version_rows(
    versions: Sequence[Mapping[str, Any]], activations: Sequence[Mapping[str, Any]], measured: Measured | None
) -> list[dict[str, Any]]:
    """Newest first."""
    live: dict[int, list[int]] = {}
    for entry in activations:
        if entry.get("kind") in TRIALS:
            continue
        live.setdefault(int(entry["version"]), []).append(int(entry["effective_from_us"]))
    rows = []
    for entry in sorted(versions, key=lambda entry: -int(entry["version"]))[:MAX_VERSION_ROWS]:
        version = int(entry["version"])
        training, metrics = entry.get("training") or {}, entry.get("metrics") or {}
        evaluated, right = measured.version_evaluated.get(version, (0, 0)) if measured else (0, 0)
        times = sorted(live.get(version, []))
        window = [time_text(training[end]) for end in ("from_us", "to_us") if training.get(end) is not None]
        rows.append(
            {
                "version": version,
                "live_from": time_text(times[0]) if times else None,
                "again": len(times) - 1 if times else 0,
                "window": " to ".join(window),
                "trained_rows": training.get("rows"),
                "loss": metrics.get("loss"),
                "predicted": measured.version_rows.get(version, 0) if measured else 0,
                "accuracy": right / evaluated if evaluated else None,
                "digest": str(entry.get("digest") or "")[:DIGEST_LETTERS],
            }
        )
    return rows


def _decisions(activations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was tried, promoted and taken back, and why; newest first. Plain activations are in the table of versions."""
    told = [entry for entry in activations if entry.get("kind", "activate") != "activate"]
    return [
        {
            "time": time_text(entry["effective_from_us"]),
            "kind": entry["kind"] + (f" {entry['share']:.0%}" if entry["kind"] == "canary" else ""),
            "version": entry["version"],
            "reason": entry["reason"],
            "by": entry["by"],
        }
        for entry in reversed(told[-MAX_VERSION_ROWS:])
    ]
