"""What a runner cannot do, said before anything is submitted: one sentence, and what to use instead."""

from __future__ import annotations

from pipelines.job import RunSection


class CannotRun(Exception):
    """A job that its runner cannot run; says why, and what to use instead."""


def check(run: RunSection) -> None:
    """Checks how a job is to be run against what its runner can do.

    Raises:
        CannotRun: it cannot.
    """
    reason = _reason(run)
    if reason is not None:
        raise CannotRun(reason)


def _reason(run: RunSection) -> str | None:
    if run.mode == "continuous" and run.runner != "flink":
        return {
            "direct": "the DirectRunner gives nothing before a stream ends: use mode=micro-batch, or --runner flink",
            "prism": "Prism gives nothing before a stream with side inputs ends: use mode=micro-batch, or --runner flink",
            "spark": (
                "Spark, by way of Beam, streams without sources, side inputs and state: use mode=micro-batch, or --runner flink"
            ),
        }[run.runner]
    if run.parallelism > 1 and run.runner in ("direct", "prism"):
        return f"the {run.runner} runner does one thing at a time: leave --parallelism out, or use --runner flink or spark"
    if run.master is None:
        if run.workers is not None or run.preinstalled:
            return "workers are those of a cluster: give its --master too, or leave --workers out"
        return None
    if run.runner not in ("flink", "spark"):
        return f"the {run.runner} runner has no clusters: use --runner flink or --runner spark, or leave --master out"
    if run.runner == "spark" and not run.master.startswith(("spark://", "local")):
        return f"expected Spark's master as spark://host:7077, got {run.master!r}"
    if run.runner == "flink" and (run.master.startswith("spark:") or ":" not in run.master or "/" in run.master):
        return f"expected Flink's master as host:8081, its REST address, got {run.master!r}"
    return None
