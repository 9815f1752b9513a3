"""What all sections of a job are made of: types of settings, and the base class."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

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


class Section(BaseModel):
    """A part of a job; unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
