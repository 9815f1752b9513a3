"""Serving a user's own model on a user's own data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.activation_log import ActivationLog
from tests.pipelines.jobs import START, Serve, publish, read, records, write_csv

ROWS = 40
START_US = int(START.astype("datetime64[us]").astype(np.int64))


def single(values: pa.ChunkedArray) -> np.ndarray:
    return values.to_numpy().astype(np.float32)


def scores(table: pa.Table) -> np.ndarray:
    """What `line` says, computed apart from TensorFlow."""
    return single(table["a"]) + single(table["b"])


def write(folder: Path, kind: str, table: pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"in.{kind}"
    if kind == "csv":
        return write_csv(file, table)
    if kind == "csv.gz":
        file.write_bytes(gzip.compress(write_csv(folder / "plain", table).read_bytes()))
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "parquet":
        pq.write_table(table, file)
    else:
        import tensorflow as tf

        def feature(value: object) -> tf.train.Feature:
            if isinstance(value, str):
                return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
            if isinstance(value, int):
                return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))

        with tf.io.TFRecordWriter(str(file)) as writer:
            for row in table.to_pylist():
                features = {name: feature(value) for name, value in row.items()}
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return file


class TestModels:
    def test_tf_module(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", records(ROWS)), keep="id,label")
        given = read(ran.output)
        assert given.column_names == [
            *(
                "event_time",
                "source",
                "row",
                "sequence",
                "id",
                "label",
                "prediction",
                "score",
                "model",
                "version",
                "digest",
                "policy",
            )
        ]
        np.testing.assert_allclose(given["score"].to_numpy(), scores(records(ROWS)), rtol=1e-6)
        assert given["prediction"].to_pylist() == given["label"].to_pylist()
        assert {(row["model"], row["version"], row["policy"]) for row in ran.rows()} == {("line", 1, "as_of")}

    def test_keras(self, serve, tmp_path):
        given = read(serve(write_csv(tmp_path / "in.csv", records(ROWS)), model="keras").output)
        table = records(ROWS)
        expected = 1 / (1 + np.exp(-(2 * single(table["a"]) - single(table["b"]) + 0.5)))
        np.testing.assert_allclose(given["p"].to_numpy(), expected, rtol=1e-5)

    def test_without_a_prediction_labels_give_no_accuracy_and_say_so(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", records(ROWS)), model="keras", label="label", label_delay="5s")
        assert ran.summary["accuracy"] is None
        assert ran.notices == ["there is no accuracy: the model has no output named prediction to compare with the label"]
        assert read(ran.output, "evaluations").num_rows == ROWS

    def test_a_version_activated_for_later_takes_over_there(self, serve, world, tmp_path):
        registry = tmp_path / "registry"
        publish(registry, world.line)
        version = publish(registry, world.steep, activate=False)
        ActivationLog(str(registry), "line").activate(version, START_US + 15_000_000, by="test", reason="test")
        ran = serve(write_csv(tmp_path / "in.csv", records(ROWS)), registry=registry, micro_batch="7s")
        table, given = records(ROWS), read(ran.output)
        assert given["version"].to_pylist() == [1] * 15 + [2] * (ROWS - 15)
        slopes = np.where(np.arange(ROWS) < 15, 1, -2).astype(np.float32)
        np.testing.assert_allclose(given["score"].to_numpy(), slopes * single(table["a"]) + single(table["b"]), rtol=1e-5)
        assert (ran.summary["swaps"], ran.summary["versions"]) == (1, 2)


class TestInputs:
    def test_every_format_gives_the_same(self, serve, tmp_path):
        found = {}
        for kind in ("csv", "csv.gz", "jsonl", "parquet", "tfrecord"):
            given = read(serve(write(tmp_path / kind, kind, records(ROWS)), keep="id", filter="id <> 7").output)
            found[kind] = given.drop_columns(["source"])
        assert found["csv"].num_rows == ROWS - 1
        assert all(table.equals(found["csv"]) for table in found.values())

    @pytest.mark.parametrize("unit", ["s", "ms", "us"])
    def test_units_of_time(self, serve, tmp_path, unit):
        moments = (START + np.arange(ROWS).astype("timedelta64[s]")).astype(f"datetime64[{unit}]").astype(np.int64)
        table = records(ROWS).set_column(0, "at", pa.array(moments))
        given = read(serve(write_csv(tmp_path / "in.csv", table), time="at", time_unit=unit).output)
        expected = read(serve(write_csv(tmp_path / "iso.csv", records(ROWS))).output)
        assert given["event_time"].equals(expected["event_time"])

    def test_without_a_time_the_row_number_is_the_second(self, serve, tmp_path):
        given = read(serve(write_csv(tmp_path / "in.csv", records(5)), time=None).output)
        assert given["event_time"].cast(pa.int64()).to_pylist() == [row * 1_000_000 for row in range(5)]

    def test_filter_and_counts(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", records(ROWS)), filter="a > 0 and id <> 3", keep="id")
        table = records(ROWS).to_pylist()
        assert [row["id"] for row in ran.rows()] == [row["id"] for row in table if row["a"] > 0 and row["id"] != 3]
        assert ran.summary["filtered"] == ROWS - len(ran.rows())

    @pytest.mark.parametrize(
        "cut", [{"mode": "batch"}, {"micro_batch": "7s"}, {"micro_batch_records": "9"}, {"block_rows": "16"}]
    )
    def test_cutting_changes_nothing(self, serve, tmp_path, cut):
        file = write_csv(tmp_path / "in.csv", records(ROWS))
        how = {"keep": "id", "label": "label", "label_delay": "5s", "filter": "a > -1"}
        whole, cut_up = serve(file, **how), serve(file, **how, **cut)
        assert read(cut_up.output).equals(read(whole.output))
        assert read(cut_up.output, "evaluations").equals(read(whole.output, "evaluations"))
        assert cut_up.counts == whole.counts


class TestWindows:
    HOW = {"aggregates": "a=mean(a);b=sum(b);n=count()", "keep": "n"}

    def windows(self, serve: Serve, folder: Path, **how: str) -> dict[tuple[int, object], tuple[int, float]]:
        """By start of the window in seconds and key: its rows and score. The same in one piece and cut."""
        file = write_csv(folder / "in.csv", records(ROWS))
        keep = "n,window_start" + (f",{how['window_by']}" if "window_by" in how else "")
        found = []
        for cut in ({}, {"micro_batch": "7s"}):
            ran = serve(file, **self.HOW | {"keep": keep} | how, **cut)
            assert (ran.summary["lost"], ran.summary["duplicated"]) == (None, 0)
            rows = ran.rows()
            starts = [int((row["window_start"].timestamp() * 1e6 - START_US) // 1e6) for row in rows]
            found.append(
                {(at, row.get(how.get("window_by"))): (row["n"], row["score"]) for at, row in zip(starts, rows, strict=True)}
            )
            assert len(found[-1]) == len(rows) == ran.summary["predictions"]
        assert found[0] == found[1]
        return found[0]

    def expected(self, groups: dict[tuple[int, object], list[dict]]) -> dict:
        return {
            key: (
                len(rows),
                pytest.approx(sum(row["a"] for row in rows) / len(rows) + sum(row["b"] for row in rows), rel=1e-4, abs=1e-5),
            )
            for key, rows in groups.items()
        }

    def test_fixed_by_key(self, serve, tmp_path):
        groups: dict = {}
        for second, row in enumerate(records(ROWS).to_pylist()):
            groups.setdefault((second // 10 * 10, row["label"]), []).append(row)
        found = self.windows(serve, tmp_path, windows="fixed", window_size="10s", window_by="label")
        assert found == self.expected(groups)

    def test_sliding(self, serve, tmp_path):
        groups: dict = {}
        for second, row in enumerate(records(ROWS).to_pylist()):
            for start in range(-10, ROWS, 5):
                if start <= second < start + 10:
                    groups.setdefault((start, None), []).append(row)
        assert self.windows(serve, tmp_path, windows="sliding", window_size="10s", window_every="5s") == self.expected(groups)

    def test_session(self, serve, tmp_path):
        """Gaps come from a filter: ids 10 to 16 are left out."""
        table = records(ROWS).to_pylist()
        groups = {(0, None): table[:10], (17, None): table[17:]}
        how = {"windows": "session", "window_gap": "5s", "filter": "id < 10 or id > 16"}
        assert self.windows(serve, tmp_path, **how) == self.expected(groups)


class TestLabels:
    def test_delay_and_accuracy(self, serve, world, tmp_path):
        """A model that is often wrong: its accuracy is that of its predictions, and labels change no prediction."""
        publish(tmp_path / "registry", world.steep)
        file = write_csv(tmp_path / "in.csv", records(ROWS))
        plain = serve(file, registry=tmp_path / "registry", keep="label")
        right = [row["prediction"] == row["label"] for row in plain.rows()]
        labelled = serve(file, registry=tmp_path / "registry", label="label", label_delay="5s")
        assert 0 < sum(right) < ROWS
        assert labelled.summary["accuracy"] == pytest.approx(sum(right) / ROWS, abs=1e-6)
        own = ["row", "score", "prediction", "version"]
        assert read(labelled.output).select(own).equals(read(plain.output).select(own))

    @pytest.mark.parametrize("cut", [{}, {"micro_batch": "7s"}, {"mode": "batch"}])
    def test_in_files_of_their_own(self, serve, tmp_path, cut):
        """Each comes 1 to 20 seconds after its record, so in another order; some never come; there are two files of them."""
        table = records(ROWS)
        rng = np.random.default_rng(5)
        ids = np.sort(rng.permutation(ROWS)[: ROWS - 6])
        known = ids + rng.integers(1, 20, len(ids))
        by_known = np.argsort(known, kind="stable")
        ids, known = ids[by_known], known[by_known]
        assert (np.diff(ids) < 0).any()
        labels = pa.table(
            {
                "known": pa.array(np.datetime_as_string(START + known.astype("timedelta64[s]"), unit="s")),
                "id": pa.array(ids),
                "label": table["label"].take(pa.array(ids)),
            }
        )
        write_csv(tmp_path / "labels" / "1.csv", labels.slice(0, 20))
        write_csv(tmp_path / "labels" / "2.csv", labels.slice(20))
        ran = serve(
            write_csv(tmp_path / "in.csv", table.drop_columns(["label"])),
            **{
                "label": "label",
                "labels_input": tmp_path / "labels",
                "labels_time": "known",
                "labels_on": "id",
                "label_horizon": "1m",
            },
            **cut,
        )
        assert (ran.summary["evaluated"], ran.summary["accuracy"], ran.reasons()) == (len(ids), 1.0, {})
        assert sorted(read(ran.output, "evaluations")["sequence"].to_pylist()) == sorted(ids.tolist())
        assert ran.summary["predictions"] == ROWS


class TestGoingOn:
    def test_after_the_end_nothing_is_to_be_done(self, serve, tmp_path):
        file, out = write_csv(tmp_path / "in" / "1.csv", records(ROWS)), tmp_path / "out"
        for how in ({}, {"mode": "batch"}):
            first = serve(file.parent, output=out, **how)
            files = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
            again = serve(file.parent, output=out, **how)
            assert again.notices == [
                "this job ran to its end before: nothing was read, nothing has changed; "
                "--fresh begins anew, another output folder begins another job"
            ]
            assert again.counts == first.counts
            assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
            out = tmp_path / "batch"

    def test_new_files_after_the_end_are_not_read_and_that_is_said(self, serve, tmp_path):
        write_csv(tmp_path / "in" / "1.csv", records(ROWS))
        serve(tmp_path / "in", output=tmp_path / "out")
        write_csv(tmp_path / "in" / "2.csv", records(5, start=ROWS))
        again = serve(tmp_path / "in", output=tmp_path / "out")
        assert again.summary["records"] == ROWS
        assert "there is new input, and it is NOT read" in again.notices[0]
        assert "drain=false" in again.notices[0]
        with pytest.raises(Exception, match="has ended: it ran to the end of its input"):
            serve(tmp_path / "in", output=tmp_path / "out", every="1s")

    @pytest.mark.parametrize("how", [{}, {"label": "label", "label_delay": "5s", "out_of_orderness": "3s"}])
    def test_new_files_of_a_stream_that_goes_on(self, serve, tmp_path, how):
        out = tmp_path / "out"
        table = records(ROWS)
        write_csv(tmp_path / "in" / "1.csv", table.slice(0, 25))
        first = serve(tmp_path / "in", output=out, drain="false", **how)
        assert first.summary["lost"] == 0
        assert serve(tmp_path / "in", output=out, drain="false", **how).notices[0] == "there is no new input since the last run"
        write_csv(tmp_path / "in" / "2.csv", table.slice(25))
        serve(tmp_path / "in", output=out, drain="false", **how)
        last = serve(tmp_path / "in", output=out, **how)
        whole = serve(tmp_path / "in", **how)
        assert read(out).equals(read(whole.output))
        assert last.counts == whole.counts

    def test_modes_do_not_mix(self, serve, tmp_path):
        file = write_csv(tmp_path / "in.csv", records(ROWS))
        serve(file, output=tmp_path / "out", drain="false")
        with pytest.raises(Exception, match="was begun in micro-batches; go on in that mode"):
            serve(file, output=tmp_path / "out", mode="batch")
        serve(file, output=tmp_path / "batch", mode="batch")
        assert "ran to its end before" in serve(file, output=tmp_path / "batch").notices[0]


def test_windows_are_evaluated_with_labels_of_their_own(serve: Serve, tmp_path: Path) -> None:
    rows = records(40)
    input = write_csv(tmp_path / "records.csv", rows)
    labels = ["known,id,truth", "2026-01-01T00:01:00,9,1", "2026-01-01T00:01:01,19,0"]
    ran = serve(
        input,
        label="truth",
        labels_input=write_csv(tmp_path / "labels.csv", labels),
        labels_time="known",
        labels_on="id",
        label_horizon="1h",
        windows="fixed",
        window_size="10s",
        aggregates="id=max(id);a=sum(a);b=sum(b)",
        keep="id",
    )
    last = {row["sequence"]: row["id"] for row in ran.rows()}
    assert {last[row["sequence"]]: row["truth"] for row in ran.rows("evaluations")} == {9: 1, 19: 0}
