"""One stream, however it is cut: the same versions, the same predictions, the same lineage, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from models.activation_log import Activation, ActivationLog
from pipelines.cli import main
from pipelines.replay import compare, replay_of
from tests.pipelines import electricity

DAYS = 24
CUTS = {
    "a day a micro-batch": ({"micro_batch": "1d"}, {}),
    "a week a micro-batch": ({"micro_batch": "7d"}, {}),
    "everything in one micro-batch": ({"micro_batch": "1000d"}, {}),
    "batches of 7 rows": ({"micro_batch": "7d"}, {"source": {"batch_rows": 7}}),
    "batches of 1,000 rows": ({"mode": "batch"}, {"source": {"batch_rows": 1000}}),
    "97 records a micro-batch": ({}, {"run": {"span": None, "records": 97}}),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return electricity.write_days(tmp_path_factory.mktemp("data") / "days.csv", DAYS, spoil=True)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, spoilt: Path) -> Path:
    """The reference: everything in one bounded run."""
    output = tmp_path_factory.mktemp("batch")
    outcome = electricity.run(electricity.job(output, spoilt, mode="batch"))
    assert outcome.summary is not None
    assert (outcome.summary.lost, outcome.summary.duplicated) == (0, 0)
    assert outcome.summary.swaps > 10
    # A job that learns takes records in order of time: what comes late beyond that is set aside, with the reason.
    reasons = set(electricity.read(output, "dead_letters").column("reason").to_pylist())
    assert reasons == {"late", "unparsable"}
    return output


@pytest.mark.parametrize("name", CUTS)
def test_cutting_changes_nothing(name: str, tmp_path: Path, spoilt: Path, batch: Path) -> None:
    params, changes = CUTS[name]
    outcome = electricity.run(electricity.job(tmp_path, spoilt, changes, **params))
    assert outcome.finished
    assert outcome.problems == []
    electricity.assert_same_outputs(batch, tmp_path)


def test_a_stream_that_goes_on_holds_what_may_still_change(tmp_path: Path, spoilt: Path) -> None:
    held = {"source": {"out_of_orderness": "2h"}, "run": {"drain": False}}
    outcome = electricity.run(electricity.job(tmp_path / "held", spoilt, held))
    assert outcome.summary is not None
    assert outcome.summary.lost is None, "what waits is neither lost nor done"
    assert outcome.problems == []
    assert any("wait for what is still to come" in notice for notice in outcome.notices)
    rest = {"source": {"out_of_orderness": "2h"}}
    assert electricity.run(electricity.job(tmp_path / "held", spoilt, rest)).problems == []
    electricity.run(electricity.job(tmp_path / "whole", spoilt, rest))
    electricity.assert_same_outputs(tmp_path / "held", tmp_path / "whole")


def test_versions_go_live_at_the_ends_of_their_windows(batch: Path) -> None:
    registry = str(batch / "registry")
    entries = [e for e in ActivationLog(registry, "electricity").entries() if isinstance(e, Activation)]
    times = electricity.read(batch, "predictions")
    event_times, versions = times.column("event_time").cast("int64").to_numpy(), times.column("version").to_numpy()
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        inside = event_times >= entry.effective_from_us
        if following is not None:
            inside &= event_times < following.effective_from_us
        assert (versions[inside] == entry.version).all()
    assert (versions[event_times < entries[0].effective_from_us] == 0).all()


def test_a_replay_gives_the_predictions_that_were_made(tmp_path: Path, batch: Path) -> None:
    entries = len(ActivationLog(str(batch / "registry"), "electricity").entries())
    given = CliRunner().invoke(main, ["replay", str(batch), "--to", str(tmp_path / "replay"), "--quiet"])
    assert given.exit_code == 0, given.output
    rows = electricity.read(batch, "predictions").num_rows
    assert json.loads(given.stdout.splitlines()[-1]) == {"identical": rows, "differing": 0, "missing": 0, "added": 0}
    assert len(ActivationLog(str(batch / "registry"), "electricity").entries()) == entries, "a replay leaves the log as it is"


def test_what_is_no_job_cannot_be_replayed(tmp_path: Path) -> None:
    given = CliRunner().invoke(main, ["replay", str(tmp_path)])
    assert given.exit_code == 1
    assert "no output folder of a job" in given.output


def test_a_replay_notices_a_changed_prediction(tmp_path: Path, spoilt: Path) -> None:
    output, target = tmp_path / "job", tmp_path / "replay"
    electricity.run(electricity.job(output, spoilt, mode="batch"))
    electricity.run(replay_of(str(output), str(target)))
    (part,) = (target / "predictions").glob("part-*.parquet")
    table = pq.read_table(part)
    scores = table.column("score").to_pylist()
    scores[700] += 1e-6
    index = table.schema.get_field_index("score")
    pq.write_table(table.set_column(index, table.schema.field(index), [pa.array(scores, pa.float32())]).slice(3), part)
    comparison = compare(str(output), str(target))
    assert (comparison.differing, comparison.missing, comparison.added) == (1, 3, 0)
    assert not comparison.exact
