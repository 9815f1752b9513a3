"""Training rows in files, for the summary that a version is published with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from models.training_rows import summarise_training_rows
from transforms.file_source import all_files
from transforms.schema import Schema
from transforms.sources import FileSource


def training_rows(path: str) -> Callable[[str], str]:
    """What `Registry.publish` calls for the summary of the rows in a file, a folder or a pattern.

    Raises:
        ValueError, OSError: there is no such file, or it does not tell its columns.
    """
    unknown = FileSource(path, "auto", Schema.parse("unknown:string"))
    first, *_ = unknown.list_files()
    source = FileSource(path, "auto", Schema.infer(first.path, "auto"))

    def batches() -> Iterator[pa.RecordBatch]:
        for part in all_files(source):
            for piece in source.read(part):
                yield piece.batch

    return lambda saved_model: summarise_training_rows(saved_model, batches()).to_json()
