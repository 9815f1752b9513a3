"""The command line, as somebody meets it who has never seen it before."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from runners.checkpoint import Checkpoint
from tests.pipelines.jobs import read, records, write_csv

ROOT = Path(__file__).parents[2]
ROWS = 30


def midstream(*args: Any, status: int = 0) -> Result:
    """Runs a command in this process; no error may come out as a traceback."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result


def params(**given: Any) -> list[str]:
    return [part for name, value in given.items() for part in ("--param", f"{name}={value}")]


def start(*args: Any, **options: Any) -> subprocess.Popen[str]:
    """Runs a command as a user's shell does."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.02)


@pytest.fixture
def given(world, tmp_path) -> dict[str, Any]:
    """Parameters of the serve template that work."""
    file = write_csv(tmp_path / "in" / "1.csv", records(ROWS))
    return {"input": file.parent, "time": "time", "registry": world.registry, "model": "line", "output": tmp_path / "out"}


class TestAFirstDay:
    def test_publish_run_replace_look_and_go_back(self, world, tmp_path):
        """The way through the README: the last line of a run is its summary."""
        model = ["--registry", tmp_path / "models", "--model", "price"]
        shown = midstream("publish", *model, "--activate", world.line).stdout
        assert "price version 1, digest " in shown
        assert "takes a float32, b float32" in shown
        assert "price version 1 is live from the beginning (event time) on" in shown

        write_csv(tmp_path / "in" / "1.csv", records(ROWS))
        job = params(
            input=tmp_path / "in",
            registry=tmp_path / "models",
            model="price",
            time="time",
            output=tmp_path / "out",
            drain="false",
        )
        ran = midstream("run", "serve", *job)
        summary = json.loads(ran.stdout.splitlines()[-1])
        assert (summary["records"], summary["predictions"], summary["lost"], summary["duplicated"]) == (ROWS, ROWS, 0, 0)
        assert f"report: {tmp_path}/out/report.html" in ran.stderr
        assert (tmp_path / "out" / "report.html").stat().st_size > 10_000

        shown = midstream("publish", *model, "--activate", world.steep).stdout
        assert "version 2 is live from 2026-01-01T00:00:30Z (event time) on" in shown, "what was served stays as it was"
        write_csv(tmp_path / "in" / "2.csv", records(5, start=ROWS))
        summary = json.loads(midstream("run", "serve", *job).stdout.splitlines()[-1])
        assert (summary["records"], summary["swaps"], summary["versions"]) == (ROWS + 5, 1, 2)
        assert read(tmp_path / "out")["version"].to_pylist() == [1] * ROWS + [2] * 5

        assert "version 1 is live again from 2026-01-01T00:00:35Z" in midstream("rollback", *model, "--reason", "worse").stdout
        entries = json.loads(midstream("log", *model, "--json").stdout)
        assert [(entry["version"], entry["kind"]) for entry in entries] == [(1, "activate"), (2, "activate"), (1, "rollback")]
        assert [row["version"] for row in json.loads(midstream("versions", *model[:2], "--json").stdout)] == [1, 2]

    def test_an_activation_in_the_past_is_refused(self, given, world, tmp_path):
        model = ["--registry", tmp_path / "models", "--model", "price"]
        midstream("publish", *model, "--activate", world.line)
        midstream("run", "serve", *params(**given | {"registry": tmp_path / "models", "model": "price"}))
        refused = midstream("activate", *model, "1", "--from", "2026-01-01T00:00:10Z", status=1)
        assert "has begun to serve event times up to 2026-01-01T00:00:30" in refused.stderr
        assert "expected a time such as" in midstream("activate", *model, "1", "--from", "soon", status=2).stderr

    def test_help(self):
        shown = midstream("--help").stdout
        for command in ("run", "publish", "activate", "rollback", "log", "versions", "templates"):
            assert command in shown
            assert "Usage: " in midstream(command, "--help").stdout
        for line in shown.partition("Commands:")[2].splitlines():
            assert not line.endswith("..."), line
        assert "electricity" in midstream("templates").stdout


class TestMistakes:
    def test_parameters(self, given):
        refused = midstream("run", "serve", *params(inptu="x", registry="r", block_rows="0"), status=1).stderr
        assert "did you mean input?" in refused
        assert "block_rows: expected 1 or more, got 0" in refused
        assert "expected NAME=VALUE, got 'input'" in midstream("run", "serve", "--param", "input", status=2).stderr
        assert "input is given twice" in midstream("run", "serve", "-p", "input=a", "-p", "input=b", status=2).stderr
        assert "did you mean serve?" in midstream("run", "sevre", status=1).stderr
        assert "did you mean serve?" in midstream("run", "sevre", "--help", status=1).stderr

    def test_input_that_is_not_there(self, given, tmp_path):
        refused = midstream("run", "serve", *params(**given | {"input": tmp_path / "nix.csv"}), status=1)
        assert "Error: no files match" in refused.stderr
        assert not refused.stdout

    def test_what_is_no_model(self, tmp_path):
        (tmp_path / "empty").mkdir()
        refused = midstream("publish", "--registry", tmp_path / "r", "--model", "m", tmp_path / "empty", status=1)
        assert "SavedModel" in refused.stderr
        midstream("publish", "--registry", tmp_path / "r", "--model", "m", tmp_path / "nix", status=2)

    @pytest.mark.parametrize("command", [["log"], ["rollback", "--reason", "x"], ["activate", "1"]])
    def test_registry_that_is_not_there(self, tmp_path, command):
        name, *more = command
        result = CliRunner().invoke(main, [name, "--registry", str(tmp_path / "nix"), "--model", "m", *more])
        assert result.exception is None or isinstance(result.exception, SystemExit)

    def test_dead_letters_are_told_of(self, given):
        write_csv(given["input"] / "2.csv", ["time,a,b", "2026-01-01T00:01:00,oops,1"])
        ran = midstream("run", "serve", *params(**given, columns="a:float64,b:float64"))
        assert "note: 1 dead letter, unparsable: 2.csv row 0: column 'a': expected float64, got 'oops'" in ran.stderr
        assert json.loads(ran.stdout.splitlines()[-1])["dead_letters"] == 1

    def test_quiet(self, given):
        assert len(midstream("run", "serve", "--quiet", *params(**given)).stdout.splitlines()) == 1


class TestFresh:
    def test_begins_anew(self, given, tmp_path):
        midstream("run", "serve", *params(**given))
        (tmp_path / "out" / "my notes.txt").write_text("keep me")
        write_csv(tmp_path / "in" / "2.csv", records(5, start=ROWS))
        ran = midstream("run", "serve", "--fresh", *params(**given))
        assert json.loads(ran.stdout.splitlines()[-1])["records"] == ROWS + 5
        assert (tmp_path / "out" / "my notes.txt").read_text() == "keep me", "only what the job left is deleted"

    def test_a_registry_in_the_output_folder_stays(self, given, world, tmp_path):
        given |= {"registry": tmp_path / "out" / "models"}
        midstream("publish", "--registry", given["registry"], "--model", "line", "--activate", world.line)
        for fresh in ([], ["--fresh"]):
            ran = midstream("run", "serve", *fresh, *params(**given))
            assert json.loads(ran.stdout.splitlines()[-1])["predictions"] == ROWS

    def test_of_a_folder_that_is_no_jobs_is_refused(self, given, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("ten years")
        refused = midstream("run", "serve", "--fresh", *params(**given), status=1)
        assert "holds files but is no output folder of Midstream; nothing was deleted" in refused.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]

    def test_of_a_job_that_runs_is_refused(self, given, tmp_path):
        midstream("run", "serve", *params(**given))
        before = sorted((tmp_path / "out").rglob("*"))
        checkpoint = Checkpoint(
            tmp_path / "out" / "checkpoint", json.loads((tmp_path / "out" / "checkpoint" / "job.json").read_text())
        )
        for fresh in ([], ["--fresh"]):
            assert "another process runs the job" in midstream("run", "serve", *fresh, *params(**given), status=1).stderr
        checkpoint.close()
        assert sorted((tmp_path / "out").rglob("*")) == before

    def test_dry_run_deletes_and_runs_nothing(self, given, tmp_path):
        midstream("run", "serve", *params(**given))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
        shown = midstream("run", "serve", "--fresh", "--dry-run", *params(**given)).stdout
        assert json.loads(shown)["source"]["path"] == str(given["input"])
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


class TestProcesses:
    def test_live_until_sigterm_and_on_again(self, given, tmp_path):
        out = tmp_path / "out"
        given |= {"every": "100ms"}

        def add(number: int) -> None:
            """A file that is complete when it appears."""
            hidden = write_csv(tmp_path / "incoming", records(10, start=ROWS + 10 * number))
            hidden.rename(given["input"] / f"{number + 2}.csv")

        def part(number: int) -> Callable[[], bool]:
            return lambda: (out / "checkpoint" / "commits" / f"{number:06d}.json").exists()

        process = start("run", "serve", *params(**given))
        wait_for(part(0), process)
        add(0)
        wait_for(part(1), process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert stderr.splitlines()[1:] == [f"report: {out}/report.html", "stopped; give the same command again to go on"]
        assert stderr.startswith(f"{ROWS + 10} records  "), "nothing of what TensorFlow and Beam say while they are imported"
        assert json.loads(stdout.splitlines()[-1])["predictions"] == ROWS + 10

        add(1)
        process = start("run", "serve", *params(**given))
        wait_for(part(2), process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        summary = json.loads(stdout.splitlines()[-1])
        assert (summary["records"], summary["predictions"], summary["lost"], summary["duplicated"]) == (
            ROWS + 20,
            ROWS + 20,
            0,
            0,
        )
        assert read(out)["row"].to_pylist() == [*range(ROWS), *range(10), *range(10)]

    def test_a_full_disk_is_said_and_the_next_run_goes_on(self, given, tmp_path):
        """A limit on the size of files stands for the disk."""
        process = start(
            "run", "serve", *params(**given), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
        )
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in stderr
        assert "stopped: File too large" in stderr
        assert "give the same command again" in stderr
        assert not stdout
        ran = midstream("run", "serve", *params(**given))
        assert json.loads(ran.stdout.splitlines()[-1])["predictions"] == ROWS
        assert not list((tmp_path / "out").rglob(".*")), "what the failed run left is gone"


class TestLearn:
    def test_learnt_then_served(self, tmp_path):
        """Learn from the past, then serve what comes next with what was learnt; a second go changes nothing."""
        registry = tmp_path / "models"
        past = write_csv(tmp_path / "past.csv", records(200))
        job = params(
            **{"input": past, "time": "time", "registry": registry, "model": "line", "label": "label", "label_delay": "10s"},
            **{"features": "a,b", "learn_every": "30s", "warm_up_rows": 20, "output": tmp_path / "learnt"},
        )
        counts = json.loads(midstream("run", "learn", *job).stdout.splitlines()[-1])
        assert counts["records"] == 200
        log = midstream("log", "--registry", registry, "--model", "line", "--json").stdout
        assert len(json.loads(log)) >= 5
        assert "ran to its end before" in midstream("run", "learn", *job).stderr
        assert midstream("log", "--registry", registry, "--model", "line", "--json").stdout == log

        following = write_csv(tmp_path / "next.csv", records(100, start=300))
        served = midstream(
            "run",
            "serve",
            *params(
                input=following,
                time="time",
                registry=registry,
                model="line",
                output=tmp_path / "served",
                label="label",
                label_delay="1s",
            ),
        )
        summary = json.loads(served.stdout.splitlines()[-1])
        assert (summary["predictions"], summary["cold_start"], summary["evaluated"]) == (100, 0, 100)
        assert summary["accuracy"] > 0.6

    def test_labels_in_files_of_their_own(self, tmp_path):
        table = records(60)
        known = pa.array([f"2026-01-01T00:0{(second + 5) // 60}:{(second + 5) % 60:02d}" for second in range(60)])
        labels = pa.table({"known": known, "id": table["id"], "label": table["label"]})
        job = {
            **{"input": write_csv(tmp_path / "in.csv", table.drop_columns(["label"])), "time": "time"},
            **{"labels_input": write_csv(tmp_path / "labels.csv", labels), "labels_time": "known", "labels_on": "id"},
            **{"registry": tmp_path / "models", "model": "line", "label": "label", "label_horizon": "1m", "features": "a,b"},
            **{"learn_every": "10s", "output": tmp_path / "out"},
        }
        midstream("run", "learn", *params(**job))
        rows = [
            version["learnt from rows"]
            for version in json.loads(midstream("versions", "--registry", job["registry"], "--json").stdout)
        ]
        assert sum(filter(None, rows)) == 60
