"""`midstream cluster`, `submit` and `jobs`, from the outside: a Flink of real processes is started, used and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipelines import template as templates
from pipelines.execute import Execution
from runners import guard
from tests.conformance.modes import PIPELINE
from tests.conformance.outputs import OUTPUTS, canonical, difference
from tests.conformance.workload import make

ROOT = Path(__file__).parents[2]


def test_a_cluster_is_started_used_and_ended(tmp_path: Path) -> None:
    workload = make(tmp_path, 4000)

    def midstream(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            cwd=ROOT,
            env=os.environ | {"MIDSTREAM_CLUSTERS": str(tmp_path / "clusters"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    params = ["-p", f"folder={workload.folder}", "-p", f"output={tmp_path / 'flink'}"]
    assert "start a cluster here: midstream cluster up flink" in midstream(
        "submit", str(PIPELINE), "--runner", "flink", *params, status=2
    )
    up = json.loads(midstream("cluster", "up", "flink").splitlines()[-1])
    try:
        assert "is up already" in midstream("cluster", "up", "flink", status=1)
        midstream("submit", str(PIPELINE), "--runner", "flink", "--quiet", *params)
        assert [job["state"] for job in json.loads(midstream("jobs", "list", "--json")) if job["job"] == "conformance"] == [
            "FINISHED"
        ]
        assert "0 running jobs are called 'conformance'" in midstream("jobs", "cancel", "conformance", status=1)
    finally:
        assert "flink is down" in midstream("cluster", "down", "flink")
    assert not any(map(guard._alive, up["processes"].values()))
    assert not Path(up["folder"]).exists()
    assert "was not up" in midstream("cluster", "down", "flink")

    found, here = templates.load(str(PIPELINE))
    Execution(found.fill({"folder": str(workload.folder), "output": str(tmp_path / "direct")}, here)).run()
    for name in OUTPUTS:
        assert difference(canonical(tmp_path / "direct", name), canonical(tmp_path / "flink", name)) is None
