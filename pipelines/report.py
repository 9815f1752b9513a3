"""The HTML report of a job: one file that needs nothing but a browser, no network.

What a user chose (names, dead letters, reasons) is text everywhere: Jinja escapes it in the page, the figures' JSON cannot end
its script element, and the page's own policy lets no script run but the two whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.offline

from models.timeline import MIN_TIME_US, TRIALS
from pipelines.parts import Parts
from pipelines.report_charts import DARK, LIGHT, accuracy_chart, drift_chart, lead_chart, scores_chart, versions_chart
from pipelines.report_data import BASELINE_SHARE, Measured, measure
from pipelines.report_learnt import learnt_charts
from pipelines.report_quality import quality_charts
from pipelines.summary import Summary
from transforms.batches import ROW, SOURCE

MAX_VERSION_ROWS = 1_000
MAX_REASONS = 50
MAX_EXAMPLES = 3
MAX_TEXT_LETTERS = 300
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

_FOLDER = Path(__file__).parent
_PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Chart:
    """A figure with its words."""

    name: str
    title: str
    text: str
    figure: Any


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
    figures = {chart.name: chart.figure.to_plotly_json() for chart in charts}
    # The default template is 7 kB of colours for chart types that are not here; the page has its own.
    for figure in figures.values():
        figure["layout"].pop("template", None)
    plotly_js, own_js = plotly.offline.get_plotlyjs(), (_FOLDER / "report.js").read_text(encoding="utf-8")
    page = _PAGE.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        problems=summary.problems(),
        sentence=_sentence(summary),
        more_right=_more_right(summary),
        charts=charts,
        figures=figures,
        versions=_version_rows(versions, activations, measured),
        decisions=_decisions(activations),
        versions_left_out=max(len(versions) - MAX_VERSION_ROWS, 0),
        dead_letters=_dead_letters(output),
        light=LIGHT,
        dark=DARK,
        plotly_js=plotly_js,
        own_js=own_js,
        script_hashes=[_hash(plotly_js), _hash(own_js)],
    )
    _write(Path(path), page)


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
        window = [_time(training[end]) for end in ("from_us", "to_us") if training.get(end) is not None]
        rows.append(
            {
                "version": version,
                "live_from": _time(times[0]) if times else None,
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
            "time": _time(entry["effective_from_us"]),
            "kind": entry["kind"] + (f" {entry['share']:.0%}" if entry["kind"] == "canary" else ""),
            "version": entry["version"],
            "reason": entry["reason"],
            "by": entry["by"],
        }
        for entry in reversed(told[-MAX_VERSION_ROWS:])
    ]


def _dead_letters(output: str) -> list[dict[str, Any]]:
    """By reason, the most frequent first: how many, and the first few."""
    parts = Parts(output, "dead_letters")
    reasons: dict[str, dict[str, Any]] = {}
    for batch in parts.batches([SOURCE, ROW, "reason", "detail", "record"]) if parts.rows else ():
        column = batch.column("reason").fill_null("unknown")
        for count in column.value_counts().to_pylist():
            name = count["values"]
            found = reasons.setdefault(name, {"reason": name, "rows": 0, "examples": []})
            wanted = MAX_EXAMPLES - len(found["examples"])
            found["rows"] += count["counts"]
            if wanted > 0 and len(reasons) <= MAX_REASONS:
                places = np.flatnonzero(column.to_numpy(zero_copy_only=False) == name)
                found["examples"] += [_example(row) for row in batch.take(places[:wanted]).to_pylist()]
    return sorted(reasons.values(), key=lambda found: -found["rows"])[:MAX_REASONS]


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    origin = row[SOURCE] or "unknown"
    return {
        "origin": origin if row[ROW] is None else f"{origin}:{row[ROW]}",
        "detail": _cut(row["detail"] or ""),
        "record": _cut(row["record"] or ""),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LETTERS else text[: MAX_TEXT_LETTERS - 1] + "…"


def _time(time_us: int) -> str:
    if time_us <= MIN_TIME_US:
        return "the beginning"
    text = str(np.datetime64(int(time_us), "us")).replace("T", " ")
    return text.removesuffix(".000000").removesuffix(":00")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
