"""Column names as TensorFlow takes them.

A SavedModel's inputs are named like arguments of a Python function. A column `unit price` or `class` cannot be one; it feeds the input
`unit_price` or `class_`.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

_FOREIGN = re.compile(r"[^A-Za-z0-9_]")


def input_name(column: str) -> str:
    """The name of the model input that a column feeds: the column's own, where it can be one."""
    name = _FOREIGN.sub("_", column)
    if not name or name[0].isdigit():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def column_for(name: str, columns: Iterable[str]) -> str:
    """The column that feeds a model input.

    Raises:
        ValueError: none does, or more than one.
    """
    columns = list(columns)
    if name in columns:
        return name
    found = [column for column in columns if input_name(column) == name]
    if len(found) > 1:
        raise ValueError(f"the model's input {name!r} could be fed by the columns {', '.join(found)}; rename all but one in a `map` step")
    if not found:
        raise ValueError(f"the model wants a column {name!r}; the records have {', '.join(columns)}")
    return found[0]
