"""Applies the rules of `models.gate.rules` while a job runs: after each micro-batch, on what its files say; continuously, on
what its topics say (`pipelines.live_judge`).

The evidence is read from the job's own predictions and evaluations, so a job that was killed comes to the same decision. A
decision is an entry of the activation log, with its evidence; it takes effect at the earliest boundary that is not served yet,
and a replay follows the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.activation_log import ActivationLog, LogError
from models.activations import Activation
from models.gate.rules import Role, Rules, decide, paired, unlabelled
from models.timeline import COLD_START, MIN_TIME_US
from transforms.batches import EVENT_TIME

BESIDE = "beside_"
Pair = tuple[int, int]  # the version that served, and the one beside it


class Question(NamedTuple):
    """A version that serves or is on trial, and the one that it is compared with."""

    role: Role
    version: int
    other: int
    since_us: int  # event time from which on there is evidence
    sequence: int  # of the entry that raised it


class Judge:
    """Keeps the latest pairs of every two versions that predicted the same rows."""

    def __init__(self, log: ActivationLog, by: str, label: str | None, rules: Rules) -> None:
        """Creates the judge.

        Args:
            log: of the model.
            by: the job, which signs the entries.
            label: column of the evaluations; None without labels.
            rules: to apply.
        """
        self._log, self._by, self._label, self._rules = log, by, label, rules
        self._labelled: dict[Pair, pa.Table] = {}
        self._unlabelled: dict[Pair, pa.Table] = {}

    def take(self, predictions: list[Path], evaluations: list[Path]) -> None:
        """Reads the files of a micro-batch."""
        for file in predictions:
            score = _score(pq.read_schema(file))
            if score is not None:
                self.see(predictions=pq.read_table(file, columns=_columns(score)))
        for file in evaluations if self._label is not None else ():
            if BESIDE + "prediction" in pq.read_schema(file).names:
                self.see(evaluations=pq.read_table(file, columns=[self._label, *_columns("prediction")]))

    def see(self, predictions: pa.Table | None = None, evaluations: pa.Table | None = None) -> None:
        """Takes rows; columns that are not wanted do no harm."""
        if predictions is not None and (score := _score(predictions.schema)) is not None:
            self._add(self._unlabelled, predictions.select(_columns(score)), score)
        if evaluations is not None and self._label is not None and BESIDE + "prediction" in evaluations.column_names:
            self._add(self._labelled, evaluations.select([self._label, *_columns("prediction")]), "prediction")

    def question(self) -> Question | None:
        """What is to be decided now, by what is live or on trial at the end of the log; None if nothing is."""
        timeline = self._log.timeline()
        if not len(timeline) or self._log.paused() is not None:
            return None
        live, challenger = int(timeline.version[-1]), int(timeline.challenger[-1])
        since_us = int(timeline.effective_from_us[-1])
        role: Role = "live" if not challenger else "canary" if timeline.share_ppm[-1] else "shadow"
        made_live = self._log.live(since_us)
        if role == "live" and made_live is not None and made_live.kind == "rollback":
            return None  # what was gone back to is not questioned by what it replaced
        other = timeline.before(len(timeline) - 1) if role == "live" else live
        version = live if role == "live" else challenger
        if COLD_START in (version, other):
            return None
        return Question(role, version, other, since_us, int(timeline.sequence[-1]))

    def _add(self, pairs: dict[Pair, pa.Table], table: pa.Table, output: str) -> None:
        table = table.filter(pc.greater(pc.fill_null(table.column(BESIDE + "version"), COLD_START), COLD_START))
        if not table.num_rows:
            return
        table = table.rename_columns(
            [{output: "ours", BESIDE + output: "other"}.get(name, name) for name in table.column_names]
        )
        versions = np.stack([table.column(name).to_numpy() for name in ("version", BESIDE + "version")], axis=1)
        for pair in np.unique(versions, axis=0):
            rows = table.filter(pa.array(np.all(versions == pair, axis=1)))
            key = int(pair[0]), int(pair[1])
            kept = pa.concat_tables([*([pairs[key]] if key in pairs else []), rows])
            pairs[key] = kept.slice(max(0, kept.num_rows - self._rules.window_rows))

    def judge(self, latencies: Mapping[int, float] | None = None) -> Activation | None:
        """Applies the rules to what is live, or on trial, at the end of the log.

        Args:
            latencies: seconds a row, by version, where they were measured.

        Returns:
            The entry that was appended; None if nothing was decided.
        """
        known = self._log.last_decision()
        question = self.question()
        if question is None:
            return None
        role, version, other, since_us, _ = question
        labelled, before = (
            self._evidence(self._labelled, version, other, since_us),
            self._evidence(self._unlabelled, version, other, since_us),
        )
        ratio = None
        if latencies and latencies.get(version) and latencies.get(other):
            ratio = latencies[version] / latencies[other]
        decision = decide(
            role,
            paired(labelled["label"], labelled["ours"], labelled["other"], self._rules) if labelled else None,
            unlabelled(before["ours"], before["other"], len(before["ours"]), ratio) if before else None,
            self._rules,
        )
        if decision.action == "wait":
            return None
        if decision.action == "promote":
            kind, target, reason = "promote", version, f"version {version} is better than {other}: {decision.reason}"
        else:
            kind, target, reason = "rollback", other, f"version {version} disappoints beside {other}: {decision.reason}"
        try:
            return self._log.activate(
                target,
                by=self._by,
                reason=reason,
                kind="promote" if kind == "promote" else "rollback",
                not_before_us=since_us if since_us > MIN_TIME_US else None,
                automatic=True,
                after=known,
                evidence={"version": version, "beside": other, "since_us": since_us, **decision.evidence},
            )
        except LogError:  # somebody paused or changed the log meanwhile: they were first
            return None

    def _evidence(self, pairs: dict[Pair, pa.Table], version: int, other: int, since_us: int) -> dict[str, np.ndarray]:
        """The pairs of these two, whichever of them served; nothing from before `since_us`."""
        found: list[dict[str, np.ndarray]] = []
        for key, ours, theirs in (((version, other), "ours", "other"), ((other, version), "other", "ours")):
            if key in pairs:
                table = pairs[key]
                table = table.filter(pc.greater_equal(table.column(EVENT_TIME).cast(pa.int64()), since_us))
                columns = {"ours": table.column(ours).to_numpy(), "other": table.column(theirs).to_numpy()}
                if self._label is not None and self._label in table.column_names:
                    columns["label"] = table.column(self._label).to_numpy()
                found.append(columns)
        if not found or not sum(len(columns["ours"]) for columns in found):
            return {}
        return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}


def _columns(output: str) -> list[str]:
    return [EVENT_TIME, "version", BESIDE + "version", output, BESIDE + output]


def _score(schema: pa.Schema) -> str | None:
    """The first output that is a floating-point number and was predicted by both."""
    return next(
        (
            name.removeprefix(BESIDE)
            for name in schema.names
            if name.startswith(BESIDE) and pa.types.is_floating(schema.field(name).type)
        ),
        None,
    )


def rules_of(section: Any) -> Rules:
    """The rules as a job's section gives them."""
    return Rules(**section.model_dump())
