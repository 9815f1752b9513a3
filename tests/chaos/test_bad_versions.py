"""The short form of `make chaos`: every kind of bad version that can be tried in seconds."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.table import run_table


def test_every_bad_version_is_refused_and_the_stream_does_not_notice(tmp_path: Path) -> None:
    found = run_table(tmp_path / "chaos", isolate=False, wanted=lambda attempt: not attempt.slow)
    assert [row for row in found.rows if not row.refused] == []
    assert len(found.rows) >= 60
    assert [row for row in found.rows if len(row.said) < 40] == [], "each is told why, and what to do"
    assert (found.counts.lost, found.counts.doubled, found.counts.mislabelled, found.changed) == (0, 0, 0, 0)
    assert not Path("/tmp/midstream-owned").exists(), "nothing that came with a model was run"
