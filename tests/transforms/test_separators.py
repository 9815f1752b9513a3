"""CSV whose fields are apart by semicolons or tabs reads as the same file with commas."""

from __future__ import annotations

from pathlib import Path

import pytest

from transforms.decoding.files import decode
from transforms.decoding.separators import as_commas
from transforms.schema import Schema, TimeSpec

SCHEMA = Schema.parse("price:float64,name:string?")


def read(file: Path, text: str) -> tuple[list[dict[str, object]], list[tuple[int, str]]]:
    """The good rows, and the dead ones with their reason."""
    file.write_bytes(text.encode())
    pieces = list(decode(str(file), file.name, 0, "csv", SCHEMA, TimeSpec("t", "s")))
    good = [{name: row[name] for name in ("price", "name")} for piece in pieces for row in piece.batch.to_pylist()]
    return good, [(row["row"], row["reason"]) for piece in pieces for row in piece.dead.to_pylist()]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_as_with_commas(tmp_path: Path, separator: str, end: str) -> None:
    lines = ["t,price,name", "1,2.5,a", '2,-3,"x,y;z"', "3,1e3,", "4,bad,b", "5,1,2,3", '6,7,"say ""hi"""']
    expected = read(tmp_path / "commas.csv", end.join(lines) + end)
    quoted = [separator.join(line.split(",")) for line in lines]
    quoted[2] = separator.join(["2", "-3", '"x,y;z"'])
    assert read(tmp_path / "other.csv", "\ufeff" + end.join(quoted) + end) == expected
    assert [row["price"] for row in expected[0]] == [2.5, -3.0, 1000.0, 7.0]
    assert expected[1] == [(3, "unparsable"), (4, "unparsable")]


def test_a_comma_between_digits_is_decimal(tmp_path: Path) -> None:
    good, dead = read(tmp_path / "a.csv", 't;price;name\n1;2,5;a\n2;"-0,25";"1,5 m"\n3;1;Doe, John\n4;1.5;b\n')
    assert not dead
    assert [row["price"] for row in good] == [2.5, -0.25, 1.0, 1.5]
    assert [row["name"] for row in good] == ["a", "1,5 m", "Doe; John", "b"]


def test_a_stray_quote_costs_one_line(tmp_path: Path) -> None:
    good, dead = read(tmp_path / "a.csv", 't;price;name\n1;2,5;5" pipe\n2;"3;b\n3;4,5;c\n')
    assert [row["price"] for row in good] == [2.5, 4.5]
    assert dead == [(1, "unparsable")]


@pytest.mark.parametrize("block", [b"a,b;c\n1;2,3\n", b"value\n1,5\n"])
def test_files_with_commas_or_one_column_pass_as_they_are(block: bytes) -> None:
    assert list(as_commas(iter([block, b"1;2\n"]))) == [block, b"1;2\n"]
