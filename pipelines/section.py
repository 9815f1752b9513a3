"""What all sections of a job are made of: types of settings, and the base class."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

from transforms.durations import format_duration, parse_duration


def _positive(duration_us: int) -> int:
    if duration_us == 0:
        raise ValueError("expected a duration above 0")
    return duration_us


def _names(given: Any) -> Any:
    names = [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given
    return list(dict.fromkeys(names)) if isinstance(names, list | tuple) else names


def checked_moment(text: str) -> str:
    """The text, if it is a time in ISO 8601; ValueError if not."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a time such as 2026-03-01T12:00:00Z, got {text!r}") from None
    return text


DurationUs = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(format_duration, when_used="json")]
PositiveUs = Annotated[DurationUs, AfterValidator(_positive)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


_LAG = re.compile(r"(lag|mean|min|max|std)\((.+),\s*(\d+)\)")


def parse_lags(given: Any) -> Any:
    """`before=lag(price, 1); week=mean(price, 336)` as the settings of a step `lags`: its `columns` and its `rolling`."""
    columns: dict[str, Any] = {}
    rolling: dict[str, Any] = {}
    for part in filter(str.strip, given.split(";")):
        name, _, text = (piece.strip() for piece in part.partition("="))
        found = _LAG.fullmatch(text)
        if found is None or not name:
            raise ValueError(
                f"expected name=lag(column, records back) or name=mean(column, records), min, max, std; got {part.strip()!r}"
            )
        if name in columns or name in rolling:
            raise ValueError(f"expected every name once, got {name} twice")
        function, column, records = found[1], found[2].strip(), int(found[3])
        if function == "lag":
            columns[name] = [column, records]
        else:
            rolling[name] = [column, function, records]
    return {"columns": columns, "rolling": rolling}


class Section(BaseModel):
    """A part of a job; unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LagsStep(Section):
    """Adds values of earlier records of a key: see `transforms.lags`; `text` says both, see `parse_lags`."""

    columns: dict[str, tuple[str, int]] = {}
    rolling: dict[str, tuple[str, str, int]] = {}
    by: Names = ()

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        text = given.get("text") if isinstance(given, dict) else None
        return {"by": given.get("by", ())} | parse_lags(text) if text is not None else given

    @model_validator(mode="after")
    def _asks_for_something(self) -> LagsStep:
        if not self.columns and not self.rolling:
            raise ValueError("lags: nothing is asked for; give columns, as before=lag(price, 1), or leave the key out, too")
        return self
