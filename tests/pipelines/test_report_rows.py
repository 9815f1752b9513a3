"""A stream without times is shown by row numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report_rows import counts_rows, figure_in_rows, in_rows


@pytest.mark.parametrize(("offset_us", "expected"), [(0, True), (1, False)])
def test_rows_are_told_from_times(tmp_path: Path, offset_us: int, expected: bool) -> None:
    rows = np.arange(5)
    times = pa.array(rows * 1_000_000 + offset_us).cast(pa.timestamp("us", "UTC"))
    (tmp_path / "predictions").mkdir()
    pq.write_table(pa.table({"event_time": times, "row": rows}), tmp_path / "predictions" / "part-00000-00000.parquet")
    assert counts_rows(str(tmp_path)) is expected
    assert not counts_rows(str(tmp_path / "elsewhere"))


def test_a_figure_over_time_is_one_over_rows() -> None:
    figure = go.Figure()
    name = "the 2026-03-01 model"  # a user's own text
    figure.add_scatter(x=["1970-01-01T00:16:40", "1970-01-02", "1970-01-01T00:00:00.500"], y=[1, 2, 3], name=name)
    figure.data[0].customdata = ["from 1970-01-01 00:20 on", "", ""]
    figure.update_layout(xaxis={"type": "date", "range": ["1970-01-01", "1970-01-01T01:00"]}, title=name)
    told = figure_in_rows(figure).to_plotly_json()
    assert list(told["data"][0]["x"]) == [1000, 86400, 0.5] and list(told["layout"]["xaxis"]["range"]) == [0, 3600]
    assert told["layout"]["xaxis"]["type"] == "linear" and told["data"][0]["customdata"][0] == "from 1,200 on"
    assert told["data"][0]["name"] == name and told["layout"]["title"]["text"] == name


def test_texts_of_tables() -> None:
    assert in_rows("1970-01-01 00:16:40 to 1970-01-13 13:46:40") == "1,000 to 1,086,400"
    assert in_rows("the beginning") == "the beginning" and in_rows(None) is None
