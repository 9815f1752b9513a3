"""The pages that jobs leave: one file each that needs nothing but a browser, no network.

What a user chose (names, dead letters, reasons) is text everywhere: Jinja escapes it in the page, the figures' JSON cannot end
its script element, and the page's own policy lets no script run but the two whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.offline

from models.timeline import MIN_TIME_US
from pipelines.parts import Parts
from pipelines.report_charts import DARK, LIGHT
from transforms.batches import ROW, SOURCE

MAX_REASONS = 50
MAX_EXAMPLES = 3
MAX_TEXT_LETTERS = 300

_FOLDER = Path(__file__).parent
_PAGES = jinja2.Environment(
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


def write_page(
    template: str,
    path: Path,
    *,
    title: str,
    sentence: str,
    problems: Sequence[str],
    charts: Sequence[Chart],
    outputs: Sequence[str],
    **more: Any,
) -> None:
    """Writes a page.

    Args:
        template: file beside this one, made from `page.html.j2`.
        path: the file to write. Replaced in one step: a reader sees the old page or the new one.
        title: heading of the page.
        sentence: what came of the job, in words.
        problems: what must not be overlooked.
        charts: in the order of the page.
        outputs: the folders with the job's dead letters.
        more: what the template wants beside.

    Raises:
        OSError: the file cannot be written.
    """
    figures = {chart.name: chart.figure.to_plotly_json() for chart in charts}
    # The default template is 7 kB of colours for chart types that are not here; the page has its own.
    for figure in figures.values():
        figure["layout"].pop("template", None)
    plotly_js, own_js = plotly.offline.get_plotlyjs(), (_FOLDER / "page.js").read_text(encoding="utf-8")
    page = _PAGES.get_template(template).render(
        title=title,
        sentence=sentence,
        problems=problems,
        charts=charts,
        figures=figures,
        dead_letters=_dead_letters(outputs),
        light=LIGHT,
        dark=DARK,
        plotly_js=plotly_js,
        own_js=own_js,
        script_hashes=[_hash(plotly_js), _hash(own_js)],
        **more,
    )
    _write(path, page)


def _dead_letters(outputs: Sequence[str]) -> list[dict[str, Any]]:
    """By reason, the most frequent first: how many, and the first few."""
    reasons: dict[str, dict[str, Any]] = {}
    for parts in (Parts(output, "dead_letters") for output in outputs):
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


def time_text(time_us: int) -> str:
    """A moment in UTC, without what is zero at its end."""
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
