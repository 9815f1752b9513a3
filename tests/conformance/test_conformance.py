"""The comparison itself: it must see the smallest difference. The runs over all runners are `make conformance`."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.conformance import __main__ as conformance
from tests.conformance.modes import REFERENCE, Mode
from tests.conformance.outputs import OUTPUTS, difference, digest, sort
from tests.conformance.workload import Workload

ROWS = pa.table({"a": pa.array([2.0, 0.0, None]), "b": pa.array(["x", "y", "z"])})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (pa.table({"a": pa.array([2.0, -0.0, None]), "b": ["x", "y", "z"]}), "the same values in other bytes"),
        (pa.table({"a": pa.array([2.0, 0.0, 1.0]), "b": ["x", "y", "z"]}), "row"),
        (ROWS.slice(0, 2), "2 rows, expected 3"),
        (ROWS.append_column("c", pa.array([1, 2, 3])), "columns"),
    ],
)
def test_every_difference_is_seen(other: pa.Table, said: str) -> None:
    assert said in str(difference(sort(ROWS), sort(other)))


def test_order_and_pieces_are_no_difference() -> None:
    pieces = pa.concat_tables([ROWS.slice(2, 1), ROWS.slice(0, 2)])
    assert difference(sort(ROWS), sort(pieces)) is None
    assert digest(sort(ROWS)) == digest(sort(pieces))


def test_exit_status_and_last_line_tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def gives(rows: pa.Table) -> Mode:
        return Mode("other", lambda workload, folder: dict.fromkeys(OUTPUTS, rows))

    def fails(workload: Workload, folder: Path) -> dict[str, pa.Table]:
        raise RuntimeError("no such engine")

    monkeypatch.setattr(conformance, "make", lambda folder, records: Workload(folder, records, 0))
    for mode, status, last in (
        (gives(ROWS), 0, "6 of 6 checks hold over 10 records"),
        (gives(ROWS.slice(1)), 1, "3 of 6 checks hold over 10 records"),
        (Mode("fails", fails), 1, "3 of 6 checks hold over 10 records"),
    ):
        reference = Mode(REFERENCE.name, lambda workload, folder: dict.fromkeys(OUTPUTS, ROWS))
        monkeypatch.setattr(conformance, "REFERENCE", reference)
        monkeypatch.setattr(conformance, "MODES", [reference, mode])
        monkeypatch.setattr("sys.argv", ["conformance", "--records", "10"])
        with pytest.raises(SystemExit) as ended:
            conformance.main()
        assert bool(ended.value.code) == bool(status)
        assert capsys.readouterr().out.splitlines()[-1] == last
