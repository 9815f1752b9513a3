"""What an activation log refuses, and what can be wrong with it."""

from __future__ import annotations


class LogError(ValueError):
    """The log refuses a request; says why and what to do."""


class ActivationInPast(LogError):
    """An activation from before a time that a job has begun to serve."""


class Paused(LogError):
    """A job wanted to decide something while decisions by jobs are paused."""


class SomebodyWasFirst(LogError):
    """The log was changed since somebody looked at it; says by whom."""


class NothingToRollBack(LogError):
    """There is no version to go back to."""


class LogCorrupt(LogError):
    """An entry of the log is missing or not what was written; names its place."""
