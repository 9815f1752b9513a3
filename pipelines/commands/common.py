"""What the commands share: options, times, tables, and quiet imports."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

REGISTRY = click.option("--registry", required=True, metavar="DIR", help="Root folder of the model registry.")
MODEL = click.option("--model", required=True, metavar="NAME", help="Name of the model.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, change nothing.")


@contextmanager
def hushed() -> Iterator[None]:
    """Drops what libraries say past Python while they are imported, and later on Beam's own account of errors."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # what a step raises is raised here, too
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  a device, not a path
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def who() -> str:
    """Who gives the command, for the log: user@host."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


def parse_time(text: str) -> int:
    """An ISO 8601 time in microseconds since the epoch; UTC where no zone is given.

    Raises:
        click.BadParameter: it is no time.
    """
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"expected a time such as 2026-03-01T12:00:00Z, got {text!r}", param_hint="--from") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def time_text(time_us: int) -> str:
    """An event time for people."""
    from models.timeline import MIN_TIME_US

    if time_us <= MIN_TIME_US:
        return "the beginning"
    from datetime import UTC, datetime, timedelta

    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


def print_rows(names: tuple[str, ...], rows: list[tuple[Any, ...]], as_json: bool) -> None:
    """Prints rows as a table, or as JSON: a list of objects."""
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    shown = table(*names)
    for row in rows:
        shown.add_row(*("" if value is None else str(value) for value in row))
    show(shown)


def table(*names: str) -> Any:
    """An empty table with these columns."""
    from rich.table import Table

    return Table(*names, box=None, header_style="bold", pad_edge=False)


def show(table: Any) -> None:
    """Prints a table."""
    from rich.console import Console

    Console().print(table)
