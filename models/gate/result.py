"""What the checks of the gate say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: of the check.
        passed: whether the version may go on.
        said: what was found; where it was refused, what was expected and what to do.
        measured: figures, for later.
    """

    name: str
    passed: bool
    said: str
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateReport:
    """What all checks found about one candidate."""

    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether the version may be published."""
        return all(check.passed for check in self.checks)

    @property
    def refusals(self) -> list[str]:
        """Why not, check by check."""
        return [f"{check.name}: {check.said}" for check in self.checks if not check.passed]

    def to_json(self) -> str:
        """As a JSON object, kept beside the version's manifest."""
        return json.dumps({"passed": self.passed, "checks": [asdict(check) for check in self.checks]}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GateReport:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(tuple(CheckResult(**check) for check in json.loads(text)["checks"]))


class GateRefused(ValueError):
    """A version that the gate keeps out; `report` has all that was found."""

    def __init__(self, what: str, report: GateReport) -> None:
        super().__init__(f"{what} is refused by the gate. " + " | ".join(report.refusals))
        self.report = report


def passed(name: str, said: str, **measured: Any) -> CheckResult:
    """A check that found nothing wrong."""
    return CheckResult(name, True, said, measured)


def refused(name: str, said: str, **measured: Any) -> CheckResult:
    """A check that keeps the version out."""
    return CheckResult(name, False, said, measured)
