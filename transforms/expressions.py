"""Map and filter: SQL expressions over the columns of a batch, evaluated by DuckDB on the Arrow data.

An expression says what one row gives: `nswprice - vicprice`, `hour(event_time)`, `coalesce(price, 0) > 0.2`. It is parsed
before it is run, and what could make a row depend on anything but itself is refused: subqueries, aggregates, window
functions, the clock, random numbers, settings. Files and the network are out of reach. Times are UTC, wherever it runs.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import duckdb
import pyarrow as pa

from transforms.batches import RESERVED

_SETTINGS = (
    "SET threads = 1",  # the runner has workers enough
    "SET preserve_insertion_order = true",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",  # no Python variable is a table
    "SET lock_configuration = true",
)
# The parts of a parsed expression that keep a row to itself.
_ALLOWED = {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA"}
_ALLOWED |= {"OPERATOR", "TYPE"}
_REFUSED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by its number",
}
# These read like columns, and are functions where there is no such column.
_NOT_COLUMNS = {
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "current_user",
    "user",
}
_NOT_COLUMNS |= {"current_role", "session_user", "current_catalog", "current_schema"}

_local = threading.local()


@dataclass(frozen=True)
class Map:
    """Adds columns, or replaces them where they stand; every expression sees the columns as they came.

    Rows, their order, and the columns that are not replaced stay as they are. A decimal result, such as that of the literal
    `0.5`, becomes a double.

    Attributes:
        columns: the expression of each column, such as `{"gap": "nswprice - vicprice"}`.

    Raises:
        ValueError: an expression is refused, or a column is reserved; in calls and `check` also when DuckDB refuses the
            expression for these columns, or fails on a value (`try_cast` and `try` give null instead).
    """

    columns: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, expression in self.columns.items():
            if name in RESERVED:
                raise ValueError(f"map: {name} is a reserved column and cannot be replaced; give {expression!r} another name")
            _parse(expression)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        arrays.update(zip(self.columns, evaluate(batch, list(self.columns.values())), strict=True))
        kept = {name: batch.schema.field(name) for name in batch.schema.names if name not in self.columns}
        fields = [kept.get(name, pa.field(name, array.type)) for name, array in arrays.items()]
        return pa.record_batch(list(arrays.values()), schema=pa.schema(fields, batch.schema.metadata))

    def check(self, schema: pa.Schema) -> pa.Schema:
        """Gives the schema of the result for batches of this schema; ValueError if they do not fit."""
        return self(_empty(schema)).schema


@dataclass(frozen=True)
class Filter:
    """Keeps the rows for which the condition is true; where it is null the row goes.

    Attributes:
        condition: a boolean expression such as `nswdemand > 0.2`.

    Raises:
        ValueError: as `Map`; also when the condition is not boolean.
    """

    condition: str

    def __post_init__(self) -> None:
        _parse(self.condition)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        (keep,) = evaluate(batch, [self.condition])
        if not pa.types.is_boolean(keep.type):
            raise ValueError(f"a filter wants a condition that is true or false; {self.condition!r} gives {keep.type}")
        return batch.filter(keep)

    def check(self, schema: pa.Schema) -> pa.Schema:
        """Gives the schema itself; ValueError if the condition does not fit it."""
        return self(_empty(schema)).schema


def evaluate(batch: pa.RecordBatch, expressions: Sequence[str]) -> list[pa.Array]:
    """Evaluates expressions over the columns of a batch.

    Args:
        batch: `[rows]`.
        expressions: as described above.

    Returns:
        An array `[rows]` for each expression, in the order of the rows.

    Raises:
        ValueError: says which expression, what DuckDB said of it, and which columns there are.
    """
    try:
        return _evaluate(batch, expressions)
    except duckdb.Error as error:
        for expression in expressions if len(expressions) > 1 else ():
            evaluate(batch, [expression])  # which one it was
        said = str(error).split("\n\nLINE")[0].strip()
        raise ValueError(
            f"expression {expressions[0]!r}: DuckDB said: {said}; the columns are {', '.join(batch.schema.names)}"
        ) from None


def _evaluate(batch: pa.RecordBatch, expressions: Sequence[str]) -> list[pa.Array]:
    if not expressions:
        return []
    rows = pa.Table.from_batches([batch.select(_columns_read(batch.schema, expressions))])
    # A line of its own ends a comment; a name of our own, because an expression may stand there twice.
    wanted = ", ".join(f"({expression}\n) AS c{place}" for place, expression in enumerate(expressions))
    result = _connection().from_arrow(rows).project(wanted).to_arrow_table()
    if result.num_rows != batch.num_rows:
        raise ValueError(f"{' and '.join(map(repr, expressions))} gave {result.num_rows} rows for {batch.num_rows}")
    return [_plain(column) for column in result.columns]


def _plain(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _columns_read(schema: pa.Schema, expressions: Sequence[str]) -> list[str]:
    """The columns that the expressions name: DuckDB then need not understand the others. At least one, for the row count."""
    read = {name for expression in expressions for name in _parse(expression)}
    found = [name for name in schema.names if name.lower() in read]
    if len({name.lower() for name in found}) != len(found):
        raise ValueError(f"columns {', '.join(found)}: SQL names do not differ in case alone; rename one of them")
    if others := sorted((read & _NOT_COLUMNS) - {name.lower() for name in found}):
        culprit = next(expression for expression in expressions if others[0] in _parse(expression))
        raise ValueError(
            f"expression {culprit!r}: {others[0]} is no column; what depends on the run and not the row is refused"
        )
    return found or schema.names[:1]


@lru_cache(maxsize=4096)
def _parse(expression: str) -> frozenset[str]:
    """Checks that an expression is one and keeps to its row; returns the names in it that may be columns, in lower case."""
    if not isinstance(expression, str) or not expression.strip():
        raise ValueError(f"expected an SQL expression such as 'price * 2'; got {expression!r}")
    ((written,),) = _connection().execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}\n"]).fetchall()
    parsed = json.loads(written)
    if parsed["error"]:
        raise ValueError(f"expression {expression!r}: DuckDB said: {parsed['error_message']}")
    nodes = [statement["node"] for statement in parsed["statements"]]
    node = nodes[0]
    chosen = node.get("select_list", [])
    more = [key for key in ("where_clause", "having", "qualify", "sample", "group_expressions", "modifiers") if node.get(key)]
    has_rows = node.get("from_table", {}).get("type") != "EMPTY" or node.get("cte_map", {}).get("map")
    if len(nodes) != 1 or len(chosen) != 1 or more or has_rows or chosen[0]["alias"]:
        raise ValueError(f"expected one SQL expression and nothing else, without a name or a clause; got {expression!r}")
    names: set[str] = set()
    for part in _parts(chosen[0]):
        kind = part["class"]
        if kind not in _ALLOWED:
            raise ValueError(
                f"expression {expression!r}: {_REFUSED.get(kind, kind.lower())} is refused: a row gives its own value"
            )
        if kind == "FUNCTION":
            _check_function(expression, part)
        if kind == "COLUMN_REF":
            names.update(name.lower() for name in part["column_names"])
    return frozenset(names)


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """All parts of a parsed expression that have a class, from the outermost on."""
    if isinstance(node, dict):
        if "class" in node:
            yield node
        for value in node.values():
            yield from _parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _parts(value)


def _check_function(expression: str, part: Mapping[str, Any]) -> None:
    name = part["function_name"].lower()
    known = _functions().get(name)
    if known is None:
        raise ValueError(f"expression {expression!r}: DuckDB has no function {name}")
    # A table function of the same name cannot be meant: it stands in no expression.
    here = [entry for entry in known if entry[0] in ("scalar", "macro", "aggregate", "window")]
    from_today = name == "age" and len(part["arguments"]) == 1
    if not here or from_today or not all(_keeps_to_its_row(name, *entry) for entry in here):
        raise ValueError(
            f"expression {expression!r}: {name} is refused: it looks at other rows, at the run or outside; "
            "a row gives its own value"
        )


def _keeps_to_its_row(name: str, kind: str, stability: str | None, definition: str) -> bool:
    if kind != "macro":
        return kind == "scalar" and stability == "CONSISTENT"
    if name == "if":  # its definition uses the word `if` for a CASE
        return True
    try:
        return not _parse(definition) & _NOT_COLUMNS
    except ValueError:
        return False


def _functions() -> dict[str, list[tuple[str, str | None, str]]]:
    """Kind, stability and, of macros, the definition, by the name of the function."""
    if not hasattr(_local, "functions"):
        query = "SELECT DISTINCT function_name, function_type, stability, macro_definition FROM duckdb_functions()"
        functions: dict[str, list[tuple[str, str | None, str]]] = {}
        for name, *rest in _connection().execute(query).fetchall():
            functions.setdefault(name.lower(), []).append((rest[0], rest[1], rest[2]))
        _local.functions = functions
    return _local.functions


def _connection() -> duckdb.DuckDBPyConnection:
    """The connection of this process and thread: DuckDB's are for one thread, and do not outlive a fork."""
    if getattr(_local, "process", None) != os.getpid():
        connection = duckdb.connect(":memory:")
        for setting in _SETTINGS:
            connection.execute(setting)
        _local.connection, _local.process = connection, os.getpid()
    return _local.connection


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)
