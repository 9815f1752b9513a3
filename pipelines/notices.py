"""What a user should be told at the end of a run although nothing is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.parts import Parts
from transforms.batches import ROW, SOURCE
from transforms.decoding.records import BAD_TIME

_SHOWN_CHARACTERS = 200
_TIME_FORMATS = " (times are read as ISO 8601, 2026-01-31T23:59:00; numbers since 1970 want time_unit=s, ms or us)"


def dead_letter_notices(output: Path) -> list[str]:
    """How many dead letters there are of each reason, the most frequent first, each with an example."""
    letters = Parts(str(output), "dead_letters")
    counts: Counter[str] = Counter()
    examples: dict[str, dict[str, Any]] = {}
    for batch in letters.batches(["reason", SOURCE, ROW, "detail"]) if letters.rows else ():
        found = batch.column("reason").value_counts()
        for reason, count in zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True):
            counts[reason] += count
            if reason not in examples:
                examples[reason] = batch.slice(pc.index(batch.column("reason"), pa.scalar(reason)).as_py(), 1).to_pylist()[0]
    notices = []
    for reason, count in counts.most_common():
        example = examples[reason]
        place = example[SOURCE] if example[ROW] is None else f"{example[SOURCE]} row {example[ROW]}"
        help_ = _TIME_FORMATS if reason == BAD_TIME and "expected timestamp" in example["detail"] else ""
        notices.append(f"{count:,} dead letter{'s' * (count > 1)}, {reason}: {place}: {_short(example['detail'])}{help_}")
    if notices:
        notices.append(f"the dead letters are in {output / 'dead_letters'}")
    return notices


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."
