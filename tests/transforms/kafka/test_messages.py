"""Messages to Arrow: every message comes out once, under its own offset, whatever its neighbours are."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.batches import ROW_BITS
from transforms.kafka.messages import MessageDecoder, Messages, split_at
from transforms.schema import Schema, TimeSpec

SCHEMA = Schema.parse("t:int64,a:float64,s:string?")
TIME = TimeSpec("t", "s")


def messages(values: Sequence[bytes | None], first: int = 0, step: int = 1) -> Messages:
    """With keys k0, k1, ... and timestamps of 1,000 ms, 1,001 ms, ..."""
    count = len(values)
    offsets = first + step * np.arange(count)
    return Messages(offsets, list(values), [b"k%d" % n for n in range(count)], 1000 + np.arange(count))


def decoder(format: str = "jsonl", **options: object) -> MessageDecoder:
    return MessageDecoder("orders", 3, format, **{"schema": SCHEMA, "time": TIME, **options})


def record(t: int, a: object = 0.5, s: str | None = "x", **more: object) -> bytes:
    return json.dumps({"t": t, "a": a, "s": s, **more}).encode()


def test_rows_are_numbered_by_offset_and_partition() -> None:
    decoded = decoder().decode(messages([record(1), record(2)], first=7, step=5))
    assert decoded.batch.column("row").to_pylist() == [7, 12]
    assert decoded.batch.column("sequence").to_pylist() == [(3 << ROW_BITS) | 7, (3 << ROW_BITS) | 12]
    assert decoded.batch.column("source").to_pylist() == ["orders/3"] * 2
    assert (decoded.rows, decoded.next_row) == (2, 13)


def test_an_offset_beyond_the_sequence_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        decoder().decode(messages([record(1)], first=1 << ROW_BITS))


def test_what_cannot_be_used_becomes_a_dead_letter_with_its_offset() -> None:
    given = [record(1), None, b"", b"rubbish", b"  ", record(2, "text"), b'{"t": 3}', b"[1]", record(4)]
    decoded = decoder().decode(messages(given, first=100, step=2))
    assert decoded.batch.column("row").to_pylist() == [100, 116]
    dead = {letter["row"]: letter for letter in decoded.dead.to_pylist()}
    assert {row: letter["reason"] for row, letter in dead.items()} == {
        102: "tombstone",
        104: "empty_message",
        106: "unparsable",
        108: "unparsable",
        110: "unparsable",
        112: "null_value",
        114: "unparsable",
    }
    assert dead[102]["record"] == "k1", "a tombstone is told by its key"
    assert dead[106]["record"] == "rubbish"
    assert dead[112]["record"] == '{"t": 3}'
    assert all(letter["source"] == "orders/3" for letter in dead.values())
    assert decoded.rows == len(given)


def test_json_over_several_lines_is_one_record() -> None:
    pretty = json.dumps({"t": 2, "a": 1.5, "s": "two\nlines"}, indent=2).encode()
    decoded = decoder().decode(messages([record(1), pretty, record(3) + b"\n"]))
    assert decoded.batch.column("s").to_pylist() == ["x", "two\nlines", "x"]
    assert decoded.dead.num_rows == 0


def test_csv_messages_have_no_header_and_quotes_do_not_reach_over() -> None:
    given = [b"1,0.5,x", b'2,1.5,"open', b'3,2.5,closed"', b'4,3.5,"a\nb"', b"5,4.5", b"6,5.5,y\r\n", b"", b"7,6.5,"]
    decoded = decoder("csv").decode(messages(given))
    assert decoded.batch.column("row").to_pylist() == [0, 2, 3, 5, 7]
    assert decoded.batch.column("s").to_pylist() == ["x", 'closed"', "a\nb", "y", None]
    assert {letter["row"]: letter["reason"] for letter in decoded.dead.to_pylist()} == {
        1: "unparsable",
        4: "unparsable",
        6: "empty_message",
    }
    assert decoded.batch.num_rows + decoded.dead.num_rows == decoded.rows == len(given)


def test_csv_fields_in_an_order_of_their_own() -> None:
    decoded = decoder("csv", fields=("s", "unused", "a", "t")).decode(messages([b"x,9,0.5,1"]))
    assert decoded.batch.select(["t", "a", "s"]).to_pylist() == [{"t": 1, "a": 0.5, "s": "x"}]


def test_the_time_of_the_message_and_its_key() -> None:
    schema = Schema.parse("a:float64,customer:string")
    decoded = decoder(schema=schema, time=None, key="customer").decode(messages([b'{"a": 1}', b'{"a": 2, "customer": "no"}']))
    assert decoded.batch.column("customer").to_pylist() == ["k0", "k1"]
    assert [time.timestamp() for time in decoded.batch.column("event_time").to_pylist()] == [1.0, 1.001]


def test_a_key_that_is_a_number_or_missing() -> None:
    schema = Schema.parse("a:float64,customer:int64")
    some = Messages(np.arange(3), [b'{"a": 1}'] * 3, [b"17", None, b"x"], np.array([5, -1, 5]))
    decoded = decoder(schema=schema, time=TimeSpec(None), key="customer").decode(some)
    assert decoded.batch.column("customer").to_pylist() == [17]
    assert [letter["reason"] for letter in decoded.dead.to_pylist()] == ["null_value", "unparsable"]


def test_a_message_without_a_timestamp_has_no_time() -> None:
    some = Messages(np.arange(2), [b'{"a": 1}'] * 2, (), np.array([5, -1]))
    decoded = decoder(schema=Schema.parse("a:float64"), time=None).decode(some)
    assert decoded.batch.num_rows == 1
    assert [letter["reason"] for letter in decoded.dead.to_pylist()] == ["bad_time"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "nobody"}, "not declared"),
        ({"format": "parquet"}, "jsonl or csv"),
        ({"schema": Schema.parse("k:string"), "key": "k", "time": None}, "at least one column"),
    ],
)
def test_columns_that_do_not_fit_are_told(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoder(**options)


VALUES = st.sampled_from(
    [
        None,
        b"",
        b" ",
        b"rubbish",
        b"null",
        b"1,2,3",
        b'1,2,"a\nb"',
        b'1,2,"open',
        b'x"',
        b"1,2",
        b'{"t": 1}',
        b"\xff\xfe",
        b"\n",
    ]
) | st.integers(0, 99).map(record)


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=12), st.sampled_from(["jsonl", "csv"]), st.integers(1, 12), st.integers(1, 3))
def test_a_message_does_not_depend_on_its_neighbours(values: list[bytes | None], format: str, cut: int, step: int) -> None:
    """Decoded one by one, in two parts and as a whole, the same rows and letters come out, one for each message."""
    whole = messages(values, step=step)
    reader = decoder(format)

    def part(start: int, end: int) -> Messages:
        return Messages(*(column[start:end] for column in whole))

    def rows(parts: list[Messages]) -> list[object]:
        decoded = [reader.decode(given) for given in parts if len(given.offsets)]
        found = [row for piece in decoded for row in piece.batch.to_pylist() + piece.dead.to_pylist()]
        return sorted((row["row"], json.dumps(row, default=str)) for row in found)

    together = rows([whole])
    assert [row for row, _ in together] == whole.offsets.tolist()
    assert rows([part(at, at + 1) for at in range(len(values))]) == together
    assert rows([part(0, cut), part(cut, len(values))]) == together
    head, tail = split_at(reader.decode(whole), int(whole.offsets[0]) + cut)
    assert head.rows + tail.rows == len(values)
    assert head.rows == int(np.sum(whole.offsets < whole.offsets[0] + cut))
