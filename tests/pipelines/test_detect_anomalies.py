"""The template detect-anomalies as a user sees it: CSV files in, the same files with scores out."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from models.activation_log import ActivationLog
from models.registry import Registry
from pipelines.cli import main
from pipelines.notices import dead_letter_notices
from pipelines.resolve import JobError
from tests.pipelines import detections
from tests.pipelines.detections import csv_files, run, scores, series, times, values, write

SEED = 20261125
KILLS = 4
FILE_EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds: in subfolders, packed, of several columns, short, quoted, with Windows line ends."""
    root = tmp_path_factory.mktemp("anomalies-input")
    series(root / "one.csv")
    series(root / "group" / "two.csv", 900, seed=2)
    series(root / "packed.csv.gz", seed=3)
    series(root / "short.csv", 20, seed=4)
    columns = {"timestamp": times(400), "load": values(400, 5), "heat": values(400, 6)}
    write(root / "group" / "several.csv", columns)
    quoted = "\r\n".join(f'"{time}",{x}' for time, x in zip(times(150), values(150, 7), strict=True))
    (root / "quoted.csv").write_bytes(b'"timestamp",value\r\n' + quoted.encode())  # without a newline at the end
    (root / "readme.txt").write_text("not a series\n")
    return root


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("anomalies-batch") / "out"
    counts = run(folder, output, mode="batch")
    assert counts | {"seconds": 0} == {
        "files": 6,
        "records": 2870,
        "scored": 2870,
        "without_value": 0,
        "dead_letters": 0,
        "alarms": counts["alarms"],
        "seconds": 0,
    }
    assert counts["alarms"] > 0
    return output


def test_the_page_shows_the_series_with_the_strongest_anomalies(folder: Path, scored: Path) -> None:
    page = (scored / "report.html").read_text()
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])["figures"]
    assert len(figures) == 6, "as many as there are series"
    alarms = pq.read_table(scored / "alarms").num_rows + pq.read_table(scored / "stream-1" / "alarms").num_rows
    drawn = [trace for figure in figures.values() for trace in figure["data"] if trace["name"] == "alarm"]
    marks = [set(zip(trace["x"], trace["customdata"], strict=True)) for trace in drawn]  # one on each column that is drawn
    assert sum(map(len, marks)) == alarms > 0
    first = figures["series-0"]["data"]
    assert "alarm" in [trace["name"] for trace in first], "the series with most alarms is the first"
    several = next(figure for figure in figures.values() if figure["data"][0]["name"] != "value")
    assert [trace["name"] for trace in several["data"]][:2] == ["load", "heat"]
    load, heat, mark = (dict(zip(trace["x"], trace["y"], strict=True)) for trace in several["data"][:3])
    at = several["data"][2]
    assert at["name"] == "alarm"
    half = len(at["x"]) // 2
    assert mark and at["x"][:half] == at["x"][half:]
    for lines, marked in ((load, at["y"][:half]), (heat, at["y"][half:])):
        seen = [(lines[x], y) for x, y in zip(at["x"], marked, strict=False) if x in lines]
        assert seen and all(value == y for value, y in seen)
    for name in ("one.csv", "group/two.csv", "packed.csv.gz", "quoted.csv"):
        assert f"<h2>{name}</h2>" in page


def test_the_page_draws_a_few_of_many_keys_and_no_peak_is_lost(tmp_path: Path) -> None:
    rows = 40 * 200
    keys = [f"<b>{place % 40}</b>" for place in range(rows)]
    load = np.array(values(rows, 8))
    load[7_900] += 400.0
    write(tmp_path / "in" / "all.csv", {"timestamp": times(rows), "key": keys, "load": load.tolist()})
    run(tmp_path / "in", tmp_path / "out", by="key")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "8,000 rows of 40 series" in page and "The first 12 are drawn above" in page
    assert "<b>20</b>" not in page and "&lt;b&gt;20&lt;/b&gt;" in page
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])["figures"]
    assert len(figures) == 12 and max(figures["series-0"]["data"][0]["y"]) > 390


def test_every_file_comes_back_with_the_same_rows_and_a_score(folder: Path, scored: Path) -> None:
    before, after = csv_files(folder), csv_files(scored)
    assert after.keys() == before.keys()
    for name, text in before.items():
        lines = [line for line in text.decode().splitlines() if line]
        found = after[name].decode().splitlines()
        assert [line.rpartition(",")[0] for line in found] == lines, name
        assert found[0].endswith(",anomaly_score")
        numbers = np.array(scores(after[name]), float)
        assert ((numbers >= 0) & (numbers <= 1)).all()
        assert (numbers.max() > 0.3) == (name != "short.csv"), (name, numbers.max())


def test_every_score_names_the_version_that_gave_it(folder: Path, scored: Path, tmp_path: Path) -> None:
    registry = Registry(str(scored / "registry"))
    assert registry.models() == ["anomalies", "anomalies-2-columns"]
    several = "anomalies-2-columns"  # group/several.csv comes first by name
    for part, model in (("scores", several), ("stream-1/scores", "anomalies"), ("stream-1/alarms", "anomalies")):
        rows = pq.read_table(scored / part, columns=["model", "version", "digest"]).to_pylist()
        assert {tuple(row.values()) for row in rows} == {(model, 1, registry.manifest(model, 1).digests.version)}, part
        assert registry.verify(model, 1)
        (live,) = ActivationLog(str(scored / "registry"), model).timeline().version.tolist()
        assert live == 1
    # Another job may go by the same detector, from a registry of its user's.
    for name in ("a", "b"):
        run(folder / "one.csv", tmp_path / name, registry=tmp_path / "registry", model="mine")
    assert Registry(str(tmp_path / "registry")).versions("mine") == [1]
    assert csv_files(tmp_path / "a") == csv_files(tmp_path / "b") == {"one.csv": csv_files(scored)["one.csv"]}


@pytest.mark.parametrize("records", [89, 1000])
def test_micro_batches_give_the_same_files(folder: Path, scored: Path, tmp_path: Path, records: int) -> None:
    run(folder, tmp_path / "out", micro_batch_records=records)
    assert csv_files(tmp_path / "out") == csv_files(scored)
    for part in ("scores", "alarms", "stream-1/scores", "stream-1/alarms"):
        assert pq.read_table(tmp_path / "out" / part).to_pylist() == pq.read_table(scored / part).to_pylist(), part


@pytest.mark.parametrize("runner", ["prism", "flink", "spark"])
def test_every_runner_gives_the_same_files(tmp_path: Path, runner: str) -> None:
    series(tmp_path / "in" / "one.csv")
    series(tmp_path / "in" / "group" / "two.csv", 900, seed=2)
    run(tmp_path / "in", tmp_path / "direct", mode="batch")
    run(tmp_path / "in", tmp_path / "out", runner=runner, micro_batch_records=700)
    assert csv_files(tmp_path / "out") == csv_files(tmp_path / "direct")


def test_a_job_goes_on_with_files_that_come_later(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    series(source / "a.csv", seed=1)
    run(source, output, drain="false")
    assert list(csv_files(output)) == ["a.csv"]
    series(source / "b.csv", 900, seed=2)
    counts = run(source, output, drain="false")
    assert counts["records"] == 1600
    run(source, tmp_path / "whole", mode="batch")
    assert csv_files(output) == csv_files(tmp_path / "whole")


def test_keys_of_all_files_together_are_series_of_their_own(tmp_path: Path) -> None:
    keys, each = 800, 110
    draw = np.random.default_rng(1)
    key = draw.permutation(np.repeat(np.arange(keys), each))
    x = draw.normal(size=len(key)).round(4)
    half = len(key) // 2
    for name, part in (("first.csv", slice(None, half)), ("second.csv", slice(half, None))):
        columns = {"timestamp": times(len(key))[part], "site": [f"s{k % 10}" for k in key[part]], "meter": key[part] // 10}
        write(tmp_path / "in" / name, columns | {"value": x[part]})
    counts = run(tmp_path / "in", tmp_path / "out", by="site,meter", micro_batch_records=60_000)
    assert counts["scored"] == keys * each
    mine = key == 777
    alone = {"timestamp": np.array(times(len(key)))[mine], "value": x[mine]}
    write(tmp_path / "alone" / "alone.csv", alone)
    run(tmp_path / "alone", tmp_path / "alone-out", mode="batch")
    together = b"\n".join(csv_files(tmp_path / "out").values()).decode().splitlines()
    found = [line.rpartition(",")[2] for line in together if line.split(",")[1:3] == ["s7", "77"]]
    assert found == scores(csv_files(tmp_path / "alone-out")["alone.csv"])


def test_bad_rows_stay_in_their_file_without_a_score(tmp_path: Path) -> None:
    lines = [f"{time},{x}" for time, x in zip(times(300), values(300, 1), strict=True)]
    good = list(lines)
    lines[150] = f"{times(300)[150]},"  # no value
    lines[151] = f"{times(300)[151]},NaN"
    lines[160] = f"{times(300)[160]},broken"
    lines[170] = "not a time,20.0"
    lines[180] = "2026-03-02 15:00:00,1,2,3"  # too many fields
    lines[190] = f"{times(300)[190]},inf"
    lines[200] = lines[199]  # twice
    lines[210], lines[211] = lines[211], lines[210]  # out of order
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.csv").write_text("timestamp,value\n" + "\n".join(lines) + "\n")
    counts = run(tmp_path / "in", tmp_path / "out")
    assert (counts["records"], counts["without_value"], counts["dead_letters"]) == (300, 2, 4)
    text = csv_files(tmp_path / "out")["bad.csv"]
    assert [line.rpartition(",")[0] for line in text.decode().splitlines()[1:]] == lines
    assert [row for row, score in enumerate(scores(text)) if not score] == [150, 151, 160, 170, 180, 190]
    letters = pq.read_table(tmp_path / "out" / "dead_letters").to_pylist()
    assert [(letter["row"], letter["reason"]) for letter in letters] == [
        (160, "unparsable"),
        (170, "bad_time"),
        (180, "unparsable"),
        (190, "not_finite"),
    ]
    assert [" time_unit=s" in notice for notice in dead_letter_notices(tmp_path / "out") if "bad_time" in notice] == [True]
    # What is passed over leaves no trace: without it the other rows have the same scores.
    kept = [line for row, line in enumerate(lines) if row not in (150, 151, 160, 170, 180, 190)]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "bad.csv").write_text("timestamp,value\n" + "\n".join(kept) + "\n")
    run(tmp_path / "kept", tmp_path / "kept-out")
    assert scores(csv_files(tmp_path / "kept-out")["bad.csv"]) == [score for score in scores(text) if score]
    assert good != lines


def test_irregular_times_gaps_and_an_empty_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    seconds = np.cumsum(draw.choice([0, 1, 300, 86_400 * 3], 400, p=[0.1, 0.3, 0.55, 0.05]))
    when = [str(np.datetime64("2026-03-02T00:00:00") + np.timedelta64(int(s), "s")) for s in seconds]
    write(tmp_path / "in" / "gaps.csv", {"timestamp": when, "value": values(400, 1)})
    write(tmp_path / "in" / "empty.csv", {"timestamp": [], "value": []})
    # Numbers as programs write them, and what is hard for statistics: counts that are mostly 0, a value that never changes.
    some = ["1e5", "-0.0", "3.2E-4", "7", "0012.50"]
    numbers = {"formats": [some[row % 5] for row in range(400)], "spikes": np.where(draw.random(400) < 0.03, 5000, 0)}
    for name, column in {**numbers, "constant": [45] * 400}.items():
        file = write(tmp_path / "in" / f"{name}.csv", {"timestamp": times(400), "value": column})
        file.write_text(file.read_text() + "\n")  # an empty line at the end is no row
    counts = run(tmp_path / "in", tmp_path / "out")
    assert counts["scored"] == counts["records"] == 4 * 400
    found = csv_files(tmp_path / "out")
    for name in (*numbers, "constant"):
        lines = [line.rpartition(",") for line in found[f"{name}.csv"].decode().splitlines()[1 : 400 + 1]]
        assert [row for row, _, _ in lines] == (tmp_path / "in" / f"{name}.csv").read_text().splitlines()[1 : 400 + 1]
        assert all(0.0 <= float(score) <= 1.0 for _, _, score in lines)
    assert max(float(score) for score in scores(found["constant.csv"])[:400]) < 0.1
    assert found["empty.csv"] == b"timestamp,value,anomaly_score\n"
    assert len(scores(found["gaps.csv"])) == 400


def test_an_odd_file_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    series(folder / "good.csv", 200)
    series(folder / "again.csv", 200, seed=2)
    write(folder / "no-time.csv", {"when": times(30), "value": values(30, 1)})
    write(folder / "words.csv", {"timestamp": times(3), "city": ["a", "b", "c"]})
    write(folder / "scored.csv", {"timestamp": times(5), "value": values(5, 1), "anomaly_score": [0.5] * 5})
    (folder / "not-text.csv").write_bytes(np.random.default_rng(0).bytes(3000))
    done = CliRunner().invoke(main, ["run", "detect-anomalies", "-p", f"input={folder}", "-p", f"output={tmp_path / 'out'}"])
    assert done.exit_code == 0, done.output
    for told in (
        "not scored: no-time.csv: there is no column 'timestamp' with the time; there are when, value",
        "not scored: words.csv: there is no numeric column to score beside the time; there are timestamp, city",
        "not scored: scored.csv: there is a column 'anomaly_score' already",
        "missing_column",
    ):
        assert told in done.output
    counts = json.loads(done.output.splitlines()[-1])
    assert counts["scored"] == 400 and counts["records"] == 400 + counts["dead_letters"]
    found, given = csv_files(tmp_path / "out"), csv_files(folder)
    assert set(given) - set(found) == {"scored.csv"}
    for name in ("no-time.csv", "words.csv"):
        assert [line.rpartition(",")[0] for line in found[name].decode().splitlines()] == given[name].decode().splitlines()
        assert set(scores(found[name])) == {""}
    letters = pq.read_table(tmp_path / "out" / "dead_letters").to_pylist()
    assert sum(letter["source"] == "no-time.csv" for letter in letters) == 30
    run(tmp_path / "in" / "good.csv", tmp_path / "alone")
    assert found["good.csv"] == csv_files(tmp_path / "alone")["good.csv"]


@pytest.mark.parametrize("decimal", [",", "."])
def test_files_of_spreadsheets_are_read_and_written_in_their_own_way(tmp_path: Path, decimal: str) -> None:
    x, numbers = values(200, 1), [f"{number:.3f}" for number in values(200, 1)]
    write(tmp_path / "plain" / "one.csv", {"timestamp": times(200), "value": x})
    lines = ["timestamp;value", *(f"{time};{n.replace('.', decimal)}" for time, n in zip(times(200), numbers, strict=True))]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    for name in ("plain", "in"):
        assert run(tmp_path / name, tmp_path / f"{name}-out", micro_batch_records=77)["scored"] == 200
    found = csv_files(tmp_path / "in-out")["one.csv"].decode().split("\r\n")
    assert found[0] == "timestamp;value;anomaly_score" and found[-1] == "" and len(found) == 202
    assert [line.rpartition(";")[0] for line in found[1:-1]] == lines[1:]
    own = [line.rpartition(";")[2].replace(decimal, ".") for line in found[1:-1]]
    assert own == scores(csv_files(tmp_path / "plain-out")["one.csv"])


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        ({"time": ["2026-01-01"], "a": [1]}, {}, r"no column 'timestamp' .*; there are time, a.*--param time="),
        ({"timestamp": ["2026-01-01"], "city": ["x"]}, {}, r"no numeric column .*; there are timestamp, city"),
        ({"timestamp": ["2026-01-01"], "a": [1]}, {"values": "b"}, r"values: there is no column b; there are timestamp, a"),
        ({"timestamp": ["2026-01-01"], "a": [1]}, {"by": "key"}, r"by: there is no column key; there are timestamp, a"),
        ({"timestamp": ["2026-01-01"], "anomaly_score": [1]}, {}, r"there is a column 'anomaly_score' already; rename it"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_say_what_to_do(tmp_path: Path, columns: Any, params: Any, message: str) -> None:
    write(tmp_path / "in" / "one.csv", columns)
    with pytest.raises(JobError, match=f"one.csv: .*{message}"):
        run(tmp_path / "in", tmp_path / "out", **params)


def test_other_names_of_columns(tmp_path: Path) -> None:
    seconds = 1_772_409_600 + 300 * np.arange(200)
    write(tmp_path / "in" / "one.csv", {"when": seconds, "note": ["x"] * 200, "speed": values(200, 1), "count": [1] * 200})
    counts = run(tmp_path / "in", tmp_path / "out", time="when", time_unit="s", values="speed")
    assert counts["scored"] == 200
    write(tmp_path / "plain" / "one.csv", {"timestamp": times(200), "value": values(200, 1)})
    run(tmp_path / "plain", tmp_path / "plain-out")
    ours, plain = csv_files(tmp_path / "out")["one.csv"], csv_files(tmp_path / "plain-out")["one.csv"]
    assert scores(ours) == scores(plain)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    series(tmp_path / "in" / "one.csv", 20)
    with pytest.raises(JobError, match="is in the input folder"):
        run(tmp_path / "in", tmp_path / "in" / "out")
    with pytest.raises(JobError, match=r"no CSV files .*nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(JobError, match=r"no CSV files .*holds a.txt"):
        run(tmp_path / "texts", tmp_path / "out")


def test_on_the_command_line(tmp_path: Path) -> None:
    runner, command = CliRunner(), ["run", "detect-anomalies"]
    told = runner.invoke(main, [*command, "--help"]).output
    assert "anomaly_score" in told
    assert "required" in told
    series(tmp_path / "in" / "one.csv", 150)
    given = [*command, "-p", f"input={tmp_path / 'in'}", "-p", f"output={tmp_path / 'out'}"]
    dry = runner.invoke(main, [*given, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert not (tmp_path / "out" / "one.csv").exists()
    first = runner.invoke(main, given)
    assert first.exit_code == 0, first.output
    assert '"scored": 150' in first.output
    again = runner.invoke(main, given)
    assert "ran to its end before" in again.output
    series(tmp_path / "in" / "one.csv", 160)
    fresh = runner.invoke(main, [*given, "--fresh"])
    assert '"scored": 160' in fresh.output
    assert len(scores((tmp_path / "out" / "one.csv").read_bytes())) == 160


def _run_and_die(source: Path, output: Path, die_at: int | None, counted: Any) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(output) in str(args[0] if args else ""):
            counted.value += 1
            if counted.value == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    detections.run(source, output, micro_batch_records=200)


@pytest.mark.timeout(600)
def test_killed_at_any_moment(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    series(folder / "one.csv")
    series(folder / "group" / "two.csv", 900, seed=2)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "apache_beam", "pipelines.detection.execute"])
    counted = context.Value("q", 0, lock=False)

    def attempt(output: Path, die_at: int | None) -> int:
        counted.value = 0
        process = context.Process(target=_run_and_die, args=(folder, output, die_at, counted))
        process.start()
        process.join()
        return process.exitcode

    assert attempt(tmp_path / "undisturbed", None) == 0
    events, draw, moments = counted.value, random.Random(SEED), []
    print(f"seed {SEED}, {events} file events in a run")
    for _ in range(KILLS):
        moments.append(draw.randint(1, events // 5))
        assert attempt(tmp_path / "killed", moments[-1]) == -signal.SIGKILL, moments
    assert attempt(tmp_path / "killed", None) == 0
    assert csv_files(tmp_path / "killed") == csv_files(tmp_path / "undisturbed")
    assert set(csv_files(tmp_path / "killed")) == {"one.csv", "group/two.csv"}
    for part in ("scores", "alarms"):
        killed, undisturbed = (pq.read_table(tmp_path / name / part).to_pylist() for name in ("killed", "undisturbed"))
        assert killed == undisturbed, part
