"""What the user declares about the data: the columns (`Schema`) and where the event time comes from (`TimeSpec`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal, get_args

import pyarrow as pa

from transforms.batches import RESERVED, TIME_TYPE

TimeUnit = Literal["iso", "s", "ms", "us"]

SCALARS: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": TIME_TYPE,
}
NUMBERS = ("int32", "int64", "float32", "float64")
_TYPE = re.compile(r"(?P<base>\w+)(?:\[(?P<size>\d+)\])?(?P<optional>\?)?")
_US_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Column:
    """One declared column.

    Attributes:
        name: as in the file.
        base: one of `SCALARS`; of a vector, the type of its numbers.
        size: how many numbers a vector has; 0 for a single value.
        nullable: whether a value may be missing.
    """

    name: str
    base: str
    size: int = 0
    nullable: bool = False

    @staticmethod
    def parse(name: str, text: str) -> Column:
        """Reads a type such as `float64`, `string?` or `float32[16]`.

        Raises:
            ValueError: the name is empty or reserved, or there is no such type.
        """
        if not name:
            raise ValueError("a column wants a name; write name:type")
        if name in RESERVED:
            raise ValueError(f"column {name!r}: the names {', '.join(RESERVED)} are reserved; rename the column in the file")
        match = _TYPE.fullmatch(text.strip())
        base, size = (match["base"], match["size"]) if match else ("", None)
        if match is None or base not in SCALARS or (size is not None and (base not in NUMBERS or int(size) < 1)):
            raise ValueError(
                f"column {name!r}: unknown type {text!r}. Known types: {', '.join(SCALARS)}; lists of n numbers such as "
                f"float32[16] (of {', '.join(NUMBERS)}). A trailing ? allows missing values"
            )
        return Column(name, base, int(size or 0), match["optional"] is not None)

    @property
    def value_type(self) -> pa.DataType:
        """The Arrow type of one value (of a vector: of one of its numbers)."""
        return SCALARS[self.base]

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of the column."""
        return pa.list_(self.value_type, self.size) if self.size else self.value_type

    @property
    def type_text(self) -> str:
        """The type as the user writes it."""
        return self.base + (f"[{self.size}]" if self.size else "") + ("?" if self.nullable else "")


@dataclass(frozen=True)
class Schema:
    """The declared columns, in the order in which every batch has them.

    A value that is null, NaN or infinite makes its record a dead letter. In a column declared with `?` null and NaN are
    welcome and are both null afterwards; infinity still is not.
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("a schema wants at least one column, such as price:float64")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"columns declared more than once: {', '.join(twice)}")

    @staticmethod
    def parse(declared: Mapping[str, str] | str | Schema) -> Schema:
        """Reads `{"price": "float64", "name": "string?"}` or the text `price:float64,name:string?`.

        Raises:
            ValueError: a type is unknown, a name is reserved or occurs twice, or there is no column.
        """
        if isinstance(declared, Schema):
            return declared
        if isinstance(declared, str):
            pairs = []
            for part in filter(None, (part.strip() for part in declared.split(","))):
                name, colon, kind = part.rpartition(":")
                if not colon:
                    raise ValueError(f"expected name:type, got {part!r}; write for example price:float64,name:string?")
                pairs.append((name.strip(), kind))
        else:
            pairs = list(declared.items())
        for name, kind in pairs:
            if not isinstance(kind, str):
                raise ValueError(f"column {name!r}: expected a type as text such as float64, got {kind!r}")
        return Schema(tuple(Column.parse(name, kind) for name, kind in pairs))

    @staticmethod
    def infer(path: str, format: str = "auto") -> Schema:
        """Proposes a schema from the first rows of a file; see `transforms.decoding.infer.infer_schema`."""
        from transforms.decoding.infer import infer_schema

        return infer_schema(path, format)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The declared columns as an Arrow schema (without the reserved ones)."""
        return pa.schema([pa.field(column.name, column.arrow) for column in self.columns])

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Column:
        return self.columns[self.names.index(name)]

    def __str__(self) -> str:
        return ",".join(f"{column.name}:{column.type_text}" for column in self.columns)


@dataclass(frozen=True)
class TimeSpec:
    """Where the event time of a record comes from.

    Attributes:
        column: the file's column with the time; it need not be declared in the schema.
        unit: `iso` (ISO 8601 text, or native timestamps in Parquet; without a zone it is UTC) or numbers of `s`, `ms`, `us`
            since 1970.
        start, step: without a time column the record with row number n of a file happens at `start + n * step`. Every file
            starts anew, so data without a time column that stands for one sequence belongs in one file.
    """

    column: str | None = None
    unit: TimeUnit = "iso"
    start: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    step: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if self.unit not in get_args(TimeUnit):
            raise ValueError(f"expected a time unit of {', '.join(get_args(TimeUnit))}, got {self.unit!r}")
        if self.column is not None and not self.column:
            raise ValueError("the time column wants a name; leave it out to number the rows with start and step")
        if self.start.tzinfo is None:
            object.__setattr__(self, "start", self.start.replace(tzinfo=UTC))
        if self.step < timedelta(0):
            raise ValueError(f"the step between rows must not be negative, got {self.step}")

    @property
    def us_per_unit(self) -> int:
        """Microseconds in one unit of a numeric time column."""
        return _US_PER_UNIT.get(self.unit, 1)

    @property
    def start_us(self) -> int:
        """The event time of row 0 without a time column, in microseconds."""
        return (self.start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    @property
    def step_us(self) -> int:
        """Microseconds from row to row without a time column."""
        return self.step // timedelta(microseconds=1)

    def check(self, schema: Schema) -> None:
        """Raises ValueError if the schema declares the time column with a type that cannot hold such a time."""
        if self.column is None or self.column not in schema:
            return
        declared = schema[self.column]
        allowed = ("timestamp", "string") if self.unit == "iso" else ("int32", "int64", "float64")
        if declared.base not in allowed or declared.size:
            raise ValueError(
                f"time column {self.column!r}: unit {self.unit} wants it declared as {' or '.join(allowed)} "
                f"(or not declared at all), got {declared.type_text}"
            )

    def extra_column(self, schema: Schema) -> Column | None:
        """The column to read beside the declared ones, if the time column is not declared."""
        if self.column is None or self.column in schema:
            return None
        base = {"iso": "timestamp", "us": "int64"}.get(self.unit, "float64")
        return Column(self.column, base)
