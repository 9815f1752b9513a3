"""Column names as TensorFlow takes them.

A SavedModel's inputs are named like arguments of a Python function, and begin with a letter. A column `unit price`, `class` or
`1st` cannot be one; it feeds the input `unit_price`, `class_` or `column_1st`.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from functools import lru_cache

_FOREIGN = re.compile(r"[^A-Za-z0-9_]")
# `self` would clash with TensorFlow's own first argument.
_TAKEN = frozenset([*keyword.kwlist, "self"])


@lru_cache(maxsize=10_000)
def input_name(column: str) -> str:
    """The name of the model input that a column feeds: the column's own, where it can be one."""
    name = _FOREIGN.sub("_", column)
    if not name[:1].isalpha():
        name = f"column_{name}"
    return f"{name}_" if name in _TAKEN else name


def input_names(columns: Iterable[str]) -> list[str]:
    """The names of the model inputs that these columns feed.

    Raises:
        ValueError: two would have the same name; TensorFlow tells them apart neither by case nor by signs.
    """
    columns = list(columns)
    names = [input_name(column) for column in columns]
    if len({name.lower() for name in names}) < len(columns):
        raise ValueError(
            "the names of features and label must differ in letters, whatever their case, digits and underscores; "
            f"got {', '.join(columns)}. Rename some in a `map` step"
        )
    return names


def column_for(name: str, columns: Iterable[str]) -> str:
    """The column that feeds a model input.

    Raises:
        ValueError: none does, or more than one.
    """
    return _column_for(name, tuple(columns))


@lru_cache(maxsize=10_000)  # the same columns come with every batch
def _column_for(name: str, columns: tuple[str, ...]) -> str:
    found = [column for column in columns if name in (column, input_name(column))]
    if len(found) > 1:
        raise ValueError(
            f"the model's input {name!r} could be fed by the columns {', '.join(found)}; rename all but one in a `map` step"
        )
    if not found:
        raise ValueError(f"the model wants a column {name!r}; the records have {', '.join(columns)}")
    return found[0]
