"""The report: does the page hold what the output says, whatever the output holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import page as pages
from pipelines import report
from pipelines.report import write_report
from pipelines.report_charts import DARK, LIGHT, MAX_MARKS, accuracy_chart, drift_chart
from pipelines.report_data import Windows, measure
from pipelines.summary import summarise
from transforms.batches import DEAD_LETTER_SCHEMA, TIME_TYPE

HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000
EVIL = "</script><img src=x onerror=alert(1)>"
MAX_BYTES = 6_000_000


def times(values_us) -> pa.Array:
    return pa.array(np.asarray(values_us, np.int64)).cast(pa.timestamp("us")).cast(TIME_TYPE)


def write(folder: Path, table: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = table.num_rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"part-{number:06d}-00000.parquet")


def write_job(
    output: Path, rows=3_000, per_version=300, cold=100, feature="price", frozen=True, labels=True, dead=(), seed=5
) -> tuple[list, list]:
    """Hourly records; `feature` jumps by 4 half-way; the live model is right 4 times in 5, the frozen one 1 in 2."""
    random = np.random.default_rng(seed)
    times_us = START_US + HOUR_US * np.arange(rows)
    versions = np.where(np.arange(rows) < cold, 0, 1 + np.maximum(np.arange(rows) - cold, 0) // per_version)
    label = random.integers(0, 2, rows)
    live = np.where(random.random(rows) < 0.8, label, 1 - label)
    first = np.where(random.random(rows) < 0.5, label, 1 - label)
    mask = versions == 0
    columns = {
        "event_time": times(times_us),
        "source": pa.repeat("a.csv", rows),
        "row": pa.array(np.arange(rows)),
        "sequence": pa.array(np.arange(rows)),
        feature: pa.array(random.normal(0, 1, rows) + 4.0 * (np.arange(rows) >= rows // 2)),
        "constant": pa.array(np.full(rows, 7.0)),
        "prediction": pa.array(live, mask=mask),
        "score": pa.array(random.random(rows).astype(np.float32), mask=mask),
        "version": pa.array(versions),
    }
    if frozen:
        columns |= {
            "first_prediction": pa.array(first, mask=mask),
            "first_score": pa.array(random.random(rows).astype(np.float32)),
        }
    table = pa.table(columns)
    write(output / "predictions", table)
    if labels:
        kept = ["sequence", "event_time", "prediction", "version", *["first_prediction"] * frozen]
        evaluated = table.select(kept).append_column("label_time", times(times_us + HOUR_US))
        write(output / "evaluations", evaluated.append_column("label", pa.array(label)))
    if dead:
        write(output / "dead_letters", pa.Table.from_pylist(list(dead), schema=DEAD_LETTER_SCHEMA))
    published, activations = [], []
    for version in range(1, int(versions.max(initial=0)) + 1):
        start = START_US + HOUR_US * (cold + per_version * (version - 1))
        training = {"from_us": start - HOUR_US, "to_us": start, "rows": 48}
        published.append(
            {"version": version, "training": training, "metrics": {"loss": 1 / version}, "digest": f"{version:016x}"}
        )
        activations.append({"version": version, "effective_from_us": start, "reason": "learnt", "by": "job", "at": "now"})
    return published, activations


class Page(HTMLParser):
    """The page as a browser's parser sees it: tags, text outside of scripts, the figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self._inside: str | None = None
        self.figures: dict = {}
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    @property
    def charts(self) -> list[str]:
        places = [attributes["id"] for _, attributes in self.tags if attributes.get("class") == "chart"]
        assert {f"chart-{name}" for name in self.figures} == set(places)
        return [place.removeprefix("chart-") for place in places]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id", "") if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.words.append(data)
        elif self._inside == "figures":
            self.figures = json.loads(data)["figures"]


def make(tmp_path: Path, title="A job", label: str | None = "label", **options) -> tuple[Page, object]:
    versions, activations = write_job(tmp_path / "out", **options)
    rows = options.get("rows", 3_000)
    dead = {letter["sequence"] for letter in options.get("dead", ())} - {None}
    summary = summarise(str(tmp_path / "out"), rows + len(dead), 0, label, 2.5, versions)
    write_report(str(tmp_path / "out"), summary, versions, activations, title, label, str(tmp_path / "report.html"))
    return Page(tmp_path / "report.html"), summary


def test_the_page_holds_the_numbers_the_charts_and_the_tables(tmp_path):
    page, summary = make(tmp_path)
    assert page.charts == ["accuracy", "lead", "drift", "versions"]
    assert f"{summary.accuracy:.1%}" in page.text and f"{summary.accuracy_frozen:.1%}" in page.text
    assert "the model was replaced 9 times without stopping the stream" in page.text
    assert "none lost, none twice" in page.text and "not right" not in page.text
    assert summary.to_json() in page.text
    assert len(page.source.encode()) < MAX_BYTES


def test_the_page_needs_no_network(tmp_path):
    page, _ = make(tmp_path)
    assert not [attributes for _, attributes in page.tags if {"src", "href", "srcset"} & attributes.keys()]
    policy = next(attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert "@import" not in re.search(r"<style>.*?</style>", page.source, re.DOTALL).group()


def test_the_figures_are_valid_and_in_colours_that_the_dark_page_knows(tmp_path):
    page, _ = make(tmp_path)
    assert len(set(LIGHT.values())) == len(LIGHT) and LIGHT.keys() == DARK.keys()
    for figure in page.figures.values():
        go.Figure(figure)  # raises for what Plotly does not know
        colours = set(re.findall(r'"(#[0-9a-f]{6}|rgba\([^)]*\))"', json.dumps(figure)))
        assert colours <= set(LIGHT.values())


def test_lines_are_the_shares_of_right_answers(tmp_path):
    _, activations = write_job(tmp_path)
    measured = measure(str(tmp_path), "label")
    lines = {trace.name: trace for trace in accuracy_chart(measured, measured.accuracy, activations).data}
    table = pq.read_table(tmp_path / "evaluations").sort_by("sequence").to_pydict()
    place = measured.windows.of(START_US + HOUR_US * np.arange(3_000))
    for name, column in (("live model", "prediction"), ("first version, frozen", "first_prediction")):
        right = np.array([a == b for a, b in zip(table[column], table["label"], strict=True)])
        wanted = [right[place == window].mean() for window in range(measured.windows.count)]
        assert np.allclose(lines[name].y, wanted, atol=1e-4)
    assert len(lines["swap"].x) == 10 and list(lines["swap"].marker.color) == list(range(1, 11))
    assert list(lines["swap"].customdata[0]) == [1, "learnt", "job"]


def test_the_drift_shows_where_the_feature_jumped(tmp_path):
    write_job(tmp_path)
    measured = measure(str(tmp_path), "label")
    assert measured.drift.names == ("label = 1", "price", "constant")
    price, constant = measured.drift.shifts[1], measured.drift.shifts[2]
    half = measured.windows.count // 2
    assert np.abs(price[: half - 1]).max() < 1.5 and price[half + 1 :].min() > 2.5
    assert (constant == 0).all()
    assert drift_chart(measured.windows, measured.drift).data[0].zmax == 3.0


@pytest.mark.parametrize(
    "values", [[np.nan, np.nan, np.nan], [1e300, -1e300, 0.0], [np.inf, 1.0, 2.0], [1e9 + 1, 1e9 + 2, 1e9 + 3]]
)
def test_odd_numbers_do_not_break_the_page(tmp_path, values):
    table = pa.table({"event_time": times(START_US + np.arange(3)), "sequence": [0, 1, 2], "x": values, "version": [1, 1, 1]})
    write(tmp_path / "predictions", table)
    summary = summarise(str(tmp_path), 3, 0, None, 1.0, [])
    write_report(str(tmp_path), summary, [], [], "odd", None, str(tmp_path / "report.html"))
    assert "NaN" not in json.dumps(Page(tmp_path / "report.html").figures["drift"]["data"][0]["z"])


def test_without_labels_versions_and_scores_are_shown(tmp_path):
    page, _ = make(tmp_path, labels=False, label=None)
    assert page.charts == ["drift", "versions", "scores"]
    assert "Accuracy of the live model" not in page.text and "Kappa-temporal 0" not in page.text
    assert "accuracy while live" not in page.text  # a column that would be empty


def test_without_a_frozen_version_there_is_no_gap(tmp_path):
    page, _ = make(tmp_path, frozen=False)
    assert page.charts == ["accuracy", "drift", "versions"]
    assert "shaded gap" not in page.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0, "labels": False}, "No record was predicted"),
        ({"rows": 1, "cold": 0}, "1 record flowed through, all predicted by one version"),
        ({"rows": 50, "cold": 0, "per_version": 50}, "50 records flowed through, all predicted by one version"),
        ({"rows": 50, "cold": 50}, "50 records flowed through before any version was live"),
        ({"rows": 2, "cold": 0, "per_version": 1}, "replaced once"),
    ],
)
def test_small_jobs(tmp_path, options, words):
    page, _ = make(tmp_path, **options)
    assert words in page.text


def test_what_a_user_chose_is_text(tmp_path):
    letter = {"source": EVIL, "row": 3, "sequence": 9_000, "reason": EVIL, "detail": EVIL, "record": EVIL}
    page, _ = make(tmp_path, title=EVIL, feature=EVIL, dead=[letter])
    tags = {tag for tag, _ in page.tags}
    assert "img" not in tags
    assert page.text.count("<img src=x onerror=alert(1)>") >= 5  # title, heading, reason, origin, detail, record
    assert [tag for tag, _ in page.tags].count("script") == 3
    ticks = page.figures["drift"]["layout"]["yaxis"]["ticktext"]
    assert any("&lt;/script&gt;" in tick for tick in ticks) and not any("<" in tick for tick in ticks)


def test_dead_letters_are_grouped_with_origin_and_a_few_examples(tmp_path):
    dead = [
        {
            "source": "b.csv",
            "row": n,
            "sequence": 9_000 + n,
            "reason": "unparsable",
            "detail": f"detail {n}",
            "record": "x" * 5_000,
        }
        for n in range(8)
    ]
    dead.append(
        {"source": "c.csv.gz", "row": None, "sequence": None, "reason": "truncated", "detail": "ends early", "record": None}
    )
    page, _ = make(tmp_path, dead=dead)
    assert "unparsable 8 b.csv:0 detail 0" in page.text and "b.csv:2 detail 2" in page.text and "b.csv:3" not in page.text
    assert "truncated 1 c.csv.gz ends early" in page.text
    assert "x" * pages.MAX_TEXT_LETTERS not in page.text


def test_lost_records_are_loud(tmp_path):
    versions, activations = write_job(tmp_path / "out")
    summary = summarise(str(tmp_path / "out"), 3_007, 0, "label", 1.0, versions)
    write_report(str(tmp_path / "out"), summary, versions, activations, "A job", "label", str(tmp_path / "report.html"))
    page = Page(tmp_path / "report.html")
    assert "7 of 3,007 records are lost" in page.text and "7 lost, 0 duplicated" in page.text
    assert ("div", {"class": "problems", "role": "alert"}) in page.tags


def test_thousands_of_versions_stay_small(tmp_path):
    page, _ = make(tmp_path, rows=9_000, per_version=2, cold=0)
    marks = next(trace for trace in page.figures["accuracy"]["data"] if trace["name"] == "swap")
    assert len(marks["x"]) == MAX_MARKS
    assert page.text.count(" to 20") == report.MAX_VERSION_ROWS and "The 3,500 oldest are left out" in page.text
    assert len(page.source.encode()) < MAX_BYTES


def test_a_rollback_shows_as_live_twice(tmp_path):
    versions, activations = write_job(tmp_path)
    activations.append({"version": 1, "effective_from_us": START_US + HOUR_US * 2_999, "reason": "rollback", "by": "ann"})
    write_report(
        str(tmp_path),
        summarise(str(tmp_path), 3_000, 0, "label", 1.0, versions),
        versions,
        activations,
        "A job",
        "label",
        str(tmp_path / "report.html"),
    )
    assert "(+1)" in Page(tmp_path / "report.html").text


def test_a_few_wild_times_do_not_squeeze_the_stream():
    from pipelines.report_data import _windows

    stream = START_US + HOUR_US * np.arange(5_000)
    assert _windows(np.append(stream, [0, 0]), 100).start_us >= START_US
    windows = Windows(0, 10, 3)
    assert windows.of(np.array([-5, 0, 9, 10, 29, 30, 99])).tolist() == [0, 0, 0, 1, 2, 2, 2]


def test_the_page_is_replaced_in_one_step(tmp_path, monkeypatch):
    first, _ = make(tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path, title="Another")
    assert Page(tmp_path / "report.html").source == first.source
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "report.html"]


def test_the_same_output_gives_the_same_page(tmp_path):
    assert make(tmp_path / "a")[0].source == make(tmp_path / "b")[0].source
