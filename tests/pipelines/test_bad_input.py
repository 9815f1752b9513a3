"""Bad input: a clear message before anything runs, or dead letters with reason and origin while everything else goes on.

That the counts of every run here add up is checked by `jobs.run`.
"""

from __future__ import annotations

import gzip

import pyarrow as pa
import pytest

from pipelines.execute import JobError
from runners.checkpoint import CheckpointError
from tests.pipelines.jobs import read, records, write_csv

ROWS = 30
LINES = ["time,id,a,b,label", *(",".join(map(str, row.values())) for row in records(ROWS).to_pylist())]
TYPES = "id:int64,a:float64,b:float64,label:int64"
OWN_LABEL = {"label": "label", "label_delay": "5s"}
LABEL_FILE = {"label": "label", "labels_time": "known", "labels_on": "id", "label_horizon": "1m"}


def with_field(row: int, place: int, text: str) -> str:
    fields = LINES[row + 1].split(",")
    fields[place] = text
    return ",".join(fields)


BAD_ROWS = {
    "wrong type": (with_field(4, 2, "oops"), "unparsable", "column 'a': expected float64, got 'oops'"),
    "too few fields": ("garbage", "unparsable", "expected 5 fields, got 1"),
    "NaN": (with_field(4, 2, "nan"), "not_finite", "column 'a': expected float64, got nan"),
    "infinite": (with_field(4, 3, "-inf"), "not_finite", "column 'b'"),
    "no value": (with_field(4, 2, ""), "null_value", "column 'a': expected float64, got no value"),
    "no integer": (with_field(4, 1, "4.5"), "unparsable", "column 'id'"),
    "no time": (with_field(4, 0, "20x6-01-01"), "bad_time", "column 'time'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row(serve, tmp_path, case):
    line, reason, detail = BAD_ROWS[case]
    file = write_csv(tmp_path / "bad.csv", [*LINES[:5], line, *LINES[6:]])
    ran = serve(file, columns=TYPES)
    (letter,) = ran.rows("dead_letters")
    assert (letter["source"], letter["row"], letter["reason"], letter["record"]) == ("bad.csv", 4, reason, line)
    assert detail in letter["detail"]
    assert ran.summary["predictions"] == ROWS - 1
    first, where = ran.notices
    assert first.startswith(f"1 dead letter, {reason}: bad.csv row 4: {letter['detail']}")
    assert ("ISO 8601" in first) == (reason == "bad_time")  # a time is told, too, in which forms it is read
    assert where == f"the dead letters are in {ran.output / 'dead_letters'}"


def test_all_kinds_of_bad_rows_in_every_mode(serve, tmp_path):
    """The same dead letters, whether in one piece or cut, and whether or not the order matters."""
    lines = list(LINES)
    for place, (line, _, _) in enumerate(BAD_ROWS.values()):
        lines[3 * place + 2] = line
    file = write_csv(tmp_path / "bad.csv", lines)
    found = [
        read(serve(file, columns=TYPES, **how).output, "dead_letters").to_pylist()
        for how in ({}, {"mode": "batch"}, {"micro_batch_records": "11"}, {"micro_batch": "7s", **OWN_LABEL})
    ]
    assert len(found[0]) == len(BAD_ROWS)
    assert found[1:] == [found[0]] * 3


class TestInferredTypes:
    """Nothing is declared, so what the first rows hold decides."""

    def test_a_missing_feature_is_a_dead_letter(self, serve, tmp_path):
        file = write_csv(tmp_path / "bad.csv", [*LINES[:5], with_field(4, 2, "nan"), *LINES[6:]])
        assert serve(file).reasons() == {"not_finite": 1}

    def test_unless_the_user_says_that_it_may_be_missing(self, serve, tmp_path):
        file = write_csv(tmp_path / "bad.csv", [*LINES[:5], with_field(4, 2, "nan"), *LINES[6:]])
        assert serve(file, columns="a:float64?,b:float64").summary["predictions"] == ROWS

    def test_text_among_the_first_rows_says_what_to_declare(self, serve, tmp_path):
        file = write_csv(tmp_path / "bad.csv", [*LINES[:5], with_field(4, 2, "oops"), *LINES[6:]])
        with pytest.raises(JobError, match="column 'a' is string, the model wants float32") as refused:
            serve(file)
        proposed = str(refused.value).rpartition("--param columns=")[2]
        assert serve(file, columns=proposed).reasons() == {"unparsable": 1}

    def test_text_later_on_is_a_dead_letter(self, serve, tmp_path):
        lines = ["time,a,b", *(f"2026-01-01T00:{i // 60:02d}:{i % 60:02d},1.5,2" for i in range(1500))]
        lines[1400] = "2026-01-01T00:00:00,oops,2"
        assert serve(write_csv(tmp_path / "bad.csv", lines)).reasons() == {"unparsable": 1}


class TestColumns:
    def test_the_model_wants_another(self, serve, tmp_path):
        file = write_csv(tmp_path / "in.csv", records(5).drop_columns(["b"]))
        with pytest.raises(JobError, match=r"model line: the model wants a column 'b'; the records have time, id, a, label$"):
            serve(file)

    def test_declared_and_not_there(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", records(5).drop_columns(["b"])), columns=TYPES)
        assert ran.reasons() == {"missing_column": 5}
        assert "'b'" in ran.notices[0]

    def test_not_in_one_of_the_files(self, serve, tmp_path):
        write_csv(tmp_path / "in" / "1.csv", records(5))
        write_csv(tmp_path / "in" / "2.csv", records(5, start=5).drop_columns(["b"]))
        write_csv(tmp_path / "in" / "3.csv", records(5, start=10))
        ran = serve(tmp_path / "in")
        assert {(letter["source"], letter["row"]) for letter in ran.rows("dead_letters")} == {
            ("2.csv", row) for row in range(5)
        }
        assert ran.summary["predictions"] == 10

    def test_time_column_is_not_there(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", records(5)), time="nix")
        assert ran.reasons() == {"missing_column": 5}
        assert "'nix'" in ran.notices[0]

    def test_label_column_is_not_there(self, serve, tmp_path):
        with pytest.raises(JobError, match="the records have no label column 'y'; they have time, id, a, b, label"):
            serve(write_csv(tmp_path / "in.csv", records(5)), label="y", label_delay="1s")

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"keep": "id,nix"}, r"keep: there is no column nix behind the steps; there are time, id, a, b, label$"),
            ({"keep": "event_time"}, "keep: event_time need not be asked for"),
            ({"filter": "nix > 0"}, 'step 1: expression .nix > 0.: .*"nix" not found'),
            ({"filter": "a >"}, "syntax error"),
            ({"columns": "a:floaty"}, "column 'a': unknown type 'floaty'. Known types: bool"),
            ({"columns": "a"}, "expected name:type, got 'a'"),
            ({"time_unit": "ms"}, "time column 'time': unit ms wants it declared as int32"),
            ({"windows": "fixed", "aggregates": "a=sum(a)"}, "fixed windows need size"),
            (
                {"windows": "fixed", "window_size": "1s", "aggregates": "z=sum(a)"},
                "wants a column 'a'; the records have window_start, window_end, z$",
            ),
            ({"windows": "fixed", "window_size": "1s", "aggregates": "a=median(a)"}, "expected an aggregate such as"),
            ({"windows": "fixed", "window_size": "1s", "aggregates": "a=sum(nix)"}, "no column nix"),
        ],
    )
    def test_settings_that_do_not_fit(self, serve, tmp_path, given, said):
        with pytest.raises(JobError, match=said):
            serve(write_csv(tmp_path / "in.csv", records(5)), **given)

    def test_a_column_named_like_an_output(self, serve, tmp_path):
        table = records(5).append_column("score", pa.array([1.0] * 5))
        with pytest.raises(JobError, match="names of the model's outputs or of the lineage: score; rename them"):
            serve(write_csv(tmp_path / "in.csv", table))


class TestFiles:
    def test_none(self, serve, tmp_path):
        write_csv(tmp_path / "there.csv", records(5))
        with pytest.raises(JobError, match=r"no files match '.*nix.csv'; the folder '.*' holds there.csv"):
            serve(tmp_path / "nix.csv")

    def test_empty_folder(self, serve, tmp_path):
        (tmp_path / "in").mkdir()
        with pytest.raises(JobError, match=r"no files match .* holds no files"):
            serve(tmp_path / "in")

    @pytest.mark.parametrize("lines", [[], LINES[:1]])
    def test_empty(self, serve, tmp_path, lines):
        file = write_csv(tmp_path / "in.csv", lines)
        with pytest.raises(JobError, match=r"cannot infer a schema from .*in.csv.*Declare the columns: --param columns="):
            serve(file)
        ran = serve(file, columns=TYPES)
        assert (ran.summary["records"], ran.summary["predictions"], ran.rows("dead_letters")) == (0, 0, [])

    def test_empty_ones_among_others(self, serve, tmp_path):
        """The first file that has rows tells the columns."""
        write_csv(tmp_path / "in" / "0.csv", [])
        write_csv(tmp_path / "in" / "1.csv", LINES[:1])
        write_csv(tmp_path / "in" / "2.csv", LINES)
        write_csv(tmp_path / "in" / "3.csv", [])
        ran = serve(tmp_path / "in")
        assert (ran.summary["predictions"], ran.reasons()) == (ROWS, {})

    @pytest.mark.parametrize("how", [{}, OWN_LABEL])
    def test_truncated_gzip(self, serve, tmp_path, how):
        """Its readable rows count, one dead letter says where it broke off, and the next file is read."""
        many = write_csv(tmp_path / "many.csv", records(3000)).read_bytes()
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "1.csv.gz").write_bytes(gzip.compress(many)[:20_000])
        write_csv(tmp_path / "in" / "2.csv", records(10, start=3000))
        ran = serve(tmp_path / "in", **how)
        (letter,) = ran.rows("dead_letters")
        assert (letter["source"], letter["row"], letter["sequence"], letter["reason"]) == (
            "1.csv.gz",
            None,
            None,
            "unreadable_file",
        )
        readable = ran.summary["predictions"] - 10
        assert 100 < readable < 3000
        assert f"from row {readable} on" in letter["detail"]
        assert "truncated gzip" in ran.notices[0]

    def test_gzip_that_breaks_off_at_once(self, serve, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "1.csv.gz").write_bytes(gzip.compress(b"time,a,b\n")[:12])
        write_csv(tmp_path / "in" / "2.csv", LINES)
        ran = serve(tmp_path / "in")
        assert (ran.summary["predictions"], ran.reasons()) == (ROWS, {"unreadable_file": 1})

    def test_another_format_than_it_says(self, serve, tmp_path):
        with pytest.raises(JobError, match=r"cannot infer a schema from .*in.csv"):
            serve(write_csv(tmp_path / "in.csv", LINES), format="parquet")
        with pytest.raises(JobError, match=r"cannot tell the format of 'in.txt'.*csv, jsonl, parquet, tfrecord"):
            serve(write_csv(tmp_path / "in.txt", LINES))


class TestTimeRunsBackwards:
    LINES = LINES[:21] + LINES[11:16] + LINES[21:]  # five records come again, five to ten seconds late

    def test_without_any_need_of_order_all_are_predicted(self, serve, tmp_path):
        ran = serve(write_csv(tmp_path / "in.csv", self.LINES))
        assert (ran.summary["predictions"], ran.reasons()) == (ROWS + 5, {})

    @pytest.mark.parametrize("cut", [{}, {"micro_batch": "7s"}, {"micro_batch_records": "11"}, {"mode": "batch"}])
    def test_with_labels_all_are_predicted_and_those_within_the_horizon_evaluated(self, serve, tmp_path, cut):
        file = write_csv(tmp_path / "in.csv", self.LINES)
        ran = serve(file, **OWN_LABEL, **cut)
        # Four come more than the five seconds late after which their labels are given up.
        assert (ran.summary["predictions"], ran.summary["evaluated"], ran.reasons()) == (ROWS + 5, ROWS + 1, {})
        ran = serve(file, **OWN_LABEL, **cut, label_horizon="15s")
        assert (ran.summary["predictions"], ran.summary["evaluated"], ran.reasons()) == (ROWS + 5, ROWS + 5, {})

    def test_windows(self, serve, tmp_path):
        how = {"windows": "fixed", "window_size": "5s", "aggregates": "a=mean(a);b=sum(b)"}
        ran = serve(write_csv(tmp_path / "in.csv", self.LINES), **how)
        assert ran.reasons() == {"late": 5}
        ran = serve(write_csv(tmp_path / "in.csv", self.LINES), **how, allowed_lateness="15s")
        assert ran.reasons() == {}


class TestLabelsInFilesOfTheirOwn:
    RECORDS = [line.rpartition(",")[0] for line in LINES]

    def labels(self, *more: str) -> list[str]:
        """Every label ten seconds after its record."""
        known = records(ROWS + 10)["time"].to_pylist()[10:]
        return ["known,id,label", *(f"{time},{i},{LINES[i + 1].rpartition(',')[2]}" for i, time in enumerate(known)), *more]

    def test_without_a_record_twice_and_missing(self, serve, tmp_path):
        last = "2026-01-01T00:00:45"
        labels = self.labels(f"{last},999,1", f"{last},29,1", f"{last},,1", f"{last},28,nan", f"{last},27,oops")
        ran = serve(
            write_csv(tmp_path / "in.csv", self.RECORDS),
            labels_input=write_csv(tmp_path / "labels.csv", labels),
            labels_columns="id:int64?,label:int64",
            **LABEL_FILE,
        )
        letters = {(letter["row"], letter["reason"]) for letter in ran.rows("dead_letters")}
        assert letters == {
            (30, "no_record"),
            (31, "duplicate_label"),
            (32, "no_record"),
            (33, "unparsable"),
            (34, "unparsable"),
        }
        assert {letter["source"] for letter in ran.rows("dead_letters")} == {"labels.csv"}
        assert {letter["sequence"] for letter in ran.rows("dead_letters")} == {None}, "they are not numbers of records"
        assert (ran.summary["predictions"], ran.summary["evaluated"], ran.summary["accuracy"]) == (ROWS, ROWS, 1.0)

    def test_too_late(self, serve, tmp_path):
        ran = serve(
            write_csv(tmp_path / "in.csv", self.RECORDS),
            labels_input=write_csv(tmp_path / "labels.csv", self.labels()),
            **LABEL_FILE | {"label_horizon": "9s"},
        )
        assert ran.reasons() == {"no_record": ROWS}
        assert (ran.summary["predictions"], ran.summary["evaluated"], ran.summary["accuracy"]) == (ROWS, 0, None)

    @pytest.mark.parametrize(
        ("change", "lines", "said"),
        [
            ({"labels_on": "order"}, None, "the labels have no column 'order'; they have known, id, label"),
            ({"label": "y"}, None, "the labels have no column 'y'"),
            (
                {},
                ["known,id,label", "2026-01-01T00:00:10,x,1"],
                "join records on 'id', which is int64 in the records and string in the labels",
            ),
            ({}, ["known,id,label"], "cannot infer a schema .*--param labels_columns="),
        ],
    )
    def test_settings_that_do_not_fit(self, serve, tmp_path, change, lines, said):
        labels = write_csv(tmp_path / "labels.csv", lines or self.labels())
        with pytest.raises(JobError, match=said):
            serve(write_csv(tmp_path / "in.csv", self.RECORDS), labels_input=labels, **LABEL_FILE | change)

    def test_no_files(self, serve, tmp_path):
        with pytest.raises(JobError, match=r"no files match .*labels.csv"):
            serve(write_csv(tmp_path / "in.csv", self.RECORDS), labels_input=tmp_path / "labels.csv", **LABEL_FILE)


class TestRegistry:
    def test_not_there(self, serve, tmp_path):
        with pytest.raises(
            JobError, match=r"has no version of 'line' \(it has no model at all\). Publish one first: midstream publish"
        ):
            serve(write_csv(tmp_path / "in.csv", LINES), registry=tmp_path / "nix")

    def test_without_such_a_model(self, serve, tmp_path):
        with pytest.raises(JobError, match=r"has no version of 'nix' \(it has cold, keras, line\)"):
            serve(write_csv(tmp_path / "in.csv", LINES), model="nix")

    @pytest.mark.parametrize("how", [{}, OWN_LABEL, {"mode": "batch"}])
    def test_nothing_was_ever_activated(self, serve, tmp_path, how):
        ran = serve(write_csv(tmp_path / "in.csv", LINES), model="cold", **how)
        assert {(row["version"], row["score"], row["digest"], row["policy"]) for row in ran.rows()} == {
            (0, None, None, "cold_start")
        }
        assert (ran.summary["cold_start"], ran.summary["predictions"], ran.summary["swaps"]) == (ROWS, ROWS, 0)


class TestOutput:
    def test_cannot_be_written(self, serve, tmp_path):
        file = write_csv(tmp_path / "in.csv", LINES)
        for output in (file, file / "below"):
            with pytest.raises(JobError, match=r"the output folder .* cannot be written: .*--param output=DIR"):
                serve(file, output=output)

    def test_belongs_to_another_job(self, serve, tmp_path):
        file = write_csv(tmp_path / "in.csv", LINES)
        before = serve(file, output=tmp_path / "out")
        with pytest.raises(
            CheckpointError, match=r'other settings \(model.name: was "line", is "keras"\). Use another output folder'
        ):
            serve(file, output=tmp_path / "out", model="keras")
        assert read(before.output).to_pylist() == before.rows()
