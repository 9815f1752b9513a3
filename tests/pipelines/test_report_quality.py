"""The report's charts of the running evaluation and of the drift monitor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.report_data import Windows
from pipelines.report_learnt import _selection
from pipelines.report_quality import MAX_POINTS, quality_charts
from transforms.batches import TIME_TYPE

SECOND = 1_000_000
WINDOWS = Windows(0, 10 * SECOND, 10)
ACTIVATIONS = [{"version": version, "effective_from_us": version * 20 * SECOND} for version in (1, 2, 9)]


def write(output: Path, folder: str, columns: dict[str, object]) -> None:
    columns["event_time"] = pa.array(columns["event_time"], pa.int64()).cast(pa.timestamp("us")).cast(TIME_TYPE)
    (output / folder).mkdir()
    pq.write_table(pa.table(columns), output / folder / "part-0.parquet")


def metrics(rows: int = 6, **more: object) -> dict[str, object]:
    some = {
        "event_time": np.arange(rows) * SECOND,
        "segment": pa.nulls(rows, pa.string()),
        "version": pa.nulls(rows, pa.int64()),
    }
    figures = {
        name: np.linspace(0.5, 0.9, rows) for name in ("accuracy", "faded", "kappa", "kappa_temporal", "auc", "log_loss")
    }
    return {**some, "rows": [100] * rows, **figures, "rmse": pa.nulls(rows, pa.float64()), **more}


def test_figures_with_swaps_and_drift_marked(tmp_path: Path) -> None:
    write(tmp_path, "metrics", metrics())
    write(tmp_path, "events", {"event_time": [SECOND, 3 * SECOND, 4 * SECOND], "kind": ["drift", "challenger won", "drift"]})
    quality, errors = quality_charts(str(tmp_path), WINDOWS, ACTIVATIONS)
    assert [line.name for line in quality.figure.data] == [
        "accuracy",
        "accuracy, faded",
        "kappa",
        "kappa-temporal",
        "AUC",
        "swap",
    ]
    assert list(quality.figure.data[-1].customdata) == ["1", "2"], "the third is behind the stream"
    assert [shape.x0 for shape in quality.figure.layout.shapes] == ["1970-01-01T00:00:01", "1970-01-01T00:00:04"]
    assert [line.name for line in errors.figure.data] == ["log loss", "swap"]


def test_numbers_have_an_error_and_no_accuracy(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("accuracy", "kappa", "kappa_temporal", "auc", "log_loss"), pa.nulls(6, pa.float64()))
    write(tmp_path, "metrics", metrics(**nothing, rmse=np.ones(6)))
    [errors] = quality_charts(str(tmp_path), WINDOWS, [])
    assert [line.name for line in errors.figure.data] == ["root mean square error", "swap"]


def test_segments_are_lines_and_cannot_write_into_the_page(tmp_path: Path) -> None:
    write(tmp_path, "metrics", metrics(segment=["<b>", "y"] * 3))
    [segments] = quality_charts(str(tmp_path), WINDOWS, [])
    assert [line.name for line in segments.figure.data] == ["&lt;b&gt;", "y"]
    assert [len(line.y) for line in segments.figure.data] == [3, 3]


def test_alarms_of_the_monitor_and_very_many_windows(tmp_path: Path) -> None:
    rows = MAX_POINTS + 2
    drift = {"event_time": np.arange(rows) * 1000, "column": ["a", "b"] * (rows // 2), "role": ["input"] * rows}
    drift |= {"statistic": ["ks"] * rows, "distance": [0.1] * rows, "p_value": [0.2] * rows, "threshold": [0.01] * rows}
    write(tmp_path, "drift", {**drift, "alarm": [True] + [False] * (rows - 1)})
    [monitor] = quality_charts(str(tmp_path), WINDOWS, [])
    marks = monitor.figure.data[0]
    assert len(marks.x) == MAX_POINTS and marks.marker.symbol[0] == "x" and set(marks.marker.symbol[1:]) == {"square"}
    assert monitor.figure.layout.yaxis.ticktext == ("a", "b")


def test_a_job_without_them_has_no_such_charts(tmp_path: Path) -> None:
    assert quality_charts(str(tmp_path), WINDOWS, ACTIVATIONS) == []


def test_a_feature_that_was_kept_from_the_start_has_its_bar() -> None:
    events = {
        "event_time": [SECOND * second for second in (10, 10, 50, 70)],
        "kind": ["dropped", "dropped", "selected", "dropped"],
        "feature": ["c", "d", "c", "b"],
    }
    bars = {line.y[0]: line.x[:2] for line in _selection(events, WINDOWS, ("a", "b", "c", "d")).figure.data}
    ends = {name: tuple(time[-2:] for time in bar) for name, bar in bars.items()}
    assert ends == {"a": ("10", "40"), "b": ("10", "10"), "c": ("50", "40")}, "a and b were let through, and then kept"
