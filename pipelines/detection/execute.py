"""Runs a job that detects anomalies, stream by stream: from its checkpoint, if there is one, to the end of its input."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.opened import forget
from pipelines.detection.csv_output import STATE, CsvOutput
from pipelines.detection.graph import OUTPUTS, SCORES, build_detection
from pipelines.detection.job import DetectSpec
from pipelines.detection.report import write_anomaly_report
from pipelines.detection.resolve import ResolvedDetection, resolve_detection
from pipelines.detection.version import with_version
from pipelines.execute import counters
from pipelines.graph import DEAD_LETTERS, RECORDS
from pipelines.modes import Bounded
from pipelines.notices import dead_letter_notices
from pipelines.parts import Parts
from pipelines.planning import StreamPlan, StreamPlanner
from pipelines.resolve import JobError
from runners.checkpoint import LOCK, Checkpoint, lock
from runners.graphs import open_graph
from runners.micro_batch import DRAIN, MicroBatch, MicroBatchDriver, Stop
from transforms.batches import MIN_WATERMARK_US, ROW, SOURCE
from transforms.bounded_run import BoundedRun
from transforms.detection import ALARMS, SCORE
from transforms.file_source import Range
from transforms.planning import Plan
from transforms.sinks import part_name
from transforms.sources import all_files, read_tasks

CHECKPOINT = "checkpoint"
REPORT = "report.html"


@dataclass
class DetectionOutcome:
    """What came of a job.

    Attributes:
        counts: of files, series, records, scored records, dead letters and alarms.
        finished: False if it was asked to stop before its input was used up.
        notices: what the user should know although nothing is wrong.
        problems: what must not be overlooked.
        report: the page.
    """

    counts: dict[str, Any]
    finished: bool
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    report: Path | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.counts)


class DetectionExecution:
    """One go at a job."""

    def __init__(self, job: DetectSpec, *, stop: Stop | None = None) -> None:
        """Makes the job ready.

        Raises:
            JobError: something is wrong with the job or its surroundings; says what to do.
        """
        self.job = job
        self._stop = stop or Stop()
        self._streams = [_Stream(resolved, self._stop) for resolved in resolve_detection(job)]

    def run(self) -> DetectionOutcome:
        """Runs the job."""
        started = time.monotonic()
        finished = True
        for stream in self._streams:
            finished = stream.run() and finished
            if not finished:
                break
        notices = [f"not scored: {odd}" for stream in self._streams for odd in stream.odd]
        notices += [notice for stream in self._streams for notice in stream.notices]
        counts: dict[str, Any] = {}
        for stream in self._streams:
            for name, count in stream.counts().items():
                counts[name] = counts.get(name, 0) + count
        problems = []
        lost = counts["records"] - counts["scored"] - counts["without_value"] - counts["dead_letters"]
        if finished and lost:
            problems.append(f"{lost} records are missing from the output")
        counts["seconds"] = round(time.monotonic() - started, 3)
        report = Path(self.job.output) / REPORT
        folders = [str(stream_folder(Path(self.job.output), number)) for number in range(len(self._streams))]
        write_anomaly_report(folders, self.job.detector.by, self.job.name, counts, problems, report)
        return DetectionOutcome(counts, finished, notices, problems, report)


class _Stream:
    """The files of a job that have the same columns."""

    def __init__(self, resolved: ResolvedDetection, stop: Stop) -> None:
        self._resolved, self._job, self._stop = resolved, resolved.job, stop
        self.odd = resolved.odd
        self._folder = stream_folder(Path(resolved.job.output), resolved.number)
        self._run_file = str(self._folder / CHECKPOINT / "run.json")
        job = resolved.job.model_copy(update={"output": str(self._folder)})
        resolved = replace(resolved, detect=with_version(resolved.job, resolved.detect))
        where = job.run.model_dump(include={"runner", "parallelism", "master", "workers"})
        self._graph = open_graph(lambda pipeline: build_detection(Bounded(pipeline, self._run_file), resolved, job), **where)
        self.notices: list[str] = []

    def run(self) -> bool:
        """Runs it to the end of its input; False if it was stopped before."""
        identity = self._job.identity() | {"columns": list(self._resolved.detect.values)}
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._checkpoint = Checkpoint(self._folder / CHECKPOINT, identity)
        except BaseException:
            self._graph.close()
            raise
        try:
            self._csv = CsvOutput(self._resolved.records, Path(self._job.output), self._folder / CHECKPOINT)
            self._catch_up()
            if self._job.run.mode == "batch":
                self._run_batch()
                return True
            return self._run_micro_batches()
        finally:
            self._checkpoint.close()
            self._graph.close()

    def counts(self) -> dict[str, int]:
        """What all runs counted together."""
        records, letters, last = 0, 0, self._checkpoint.last_commit()
        for number in range(0 if last is None else last + 1):
            note = self._checkpoint.commit(number) or {}
            records += note.get("records", 0)
            letters += note.get("counts", {}).get("dead_letters", 0)
        scores = Parts(str(self._folder), SCORES)
        missing = 0
        for batch in scores.batches([SCORE]) if scores.rows else ():
            missing += batch.column(SCORE).null_count
        return {
            "files": len(self._csv.files),
            "records": records,
            "scored": scores.rows - missing,
            "without_value": missing,
            "dead_letters": letters,
            "alarms": Parts(str(self._folder), ALARMS).rows,
        }

    def _run_micro_batches(self) -> bool:
        settings = self._job.run
        planner = StreamPlanner(self._resolved.records, None, settings.records, settings.span)
        driver = MicroBatchDriver(self._checkpoint, planner, self._run_one, on_commit=self._committed, stop=self._stop)
        if driver.is_drained:
            self._ended_before(driver.new_input())
            return True
        if settings.trigger == "available-now":
            # No row waits for later ones: whether the stream ends here makes no difference to what was scored.
            finished = driver.available_now(drain=settings.drain)
            if finished:
                self._csv.complete()
        else:
            driver.every(settings.trigger / 1e6)
            finished = False
        self.notices += dead_letter_notices(self._folder)
        return finished

    def _run_one(self, batch: MicroBatch) -> dict[str, Any]:
        if batch.plan is None:
            return {"records": 0, "counts": {}}
        plan = StreamPlan.from_json(batch.plan)
        run = BoundedRun(batch.number, plan.reads(True), plan.watermark_us, batch.state_in, batch.state_out)
        return {"records": plan.rows, "counts": self._run_graph(run)}

    def _run_batch(self) -> None:
        if self._checkpoint.last_commit() is not None:
            if (self._checkpoint.offset(0) or {}).get("mode") != "batch":
                raise JobError(
                    f"the job of {self._job.output} was begun in micro-batches; go on in that mode, or choose another output"
                )
            self._ended_before(False)
            return
        ranges = all_files(self._resolved.records)
        self._checkpoint.write_offset(0, {"plan": None, "mode": "batch", "ranges": [asdict(part) for part in ranges]})
        counts = self._run_graph(BoundedRun(0, {RECORDS: tuple(read_tasks(ranges, MIN_WATERMARK_US, True))}))
        self._checkpoint.write_commit(0, {"records": counts.get(RECORDS, 0), "counts": counts, DRAIN: True})
        self._write_csv(0)
        self.notices += dead_letter_notices(self._folder)

    def _run_graph(self, run: BoundedRun) -> dict[str, int]:
        for name in OUTPUTS:  # what an interrupted try of this run may have left
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            for left in [*folder.glob(".*"), *self._parts(name, run.number)]:
                left.unlink()
        run.write(self._run_file)
        return counters(self._graph.run())

    def _parts(self, name: str, number: int) -> list[Path]:
        return sorted((self._folder / name).glob(part_name(number, 0).replace("-00000.", "-*.")))

    def _committed(self, batch: MicroBatch, note: dict[str, Any]) -> None:
        self._write_csv(batch.number)

    def _catch_up(self) -> None:
        """Writes the CSV lines of what was committed, and not written before the last run was killed."""
        last = self._checkpoint.last_commit()
        for number in range(self._csv.done + 1, 0 if last is None else last + 1):
            self._write_csv(number)

    def _write_csv(self, number: int) -> None:
        offset = self._checkpoint.offset(number) or {}
        if offset.get("mode") == "batch":
            ranges = [Range(**part) for part in offset["ranges"]]
        elif offset.get("plan"):
            records = StreamPlan.from_json(offset["plan"]).records
            ranges = list(records.ranges) if isinstance(records, Plan) else []
        else:
            ranges = []
        tables = [pq.read_table(file, columns=[SOURCE, ROW, SCORE]) for file in self._parts(SCORES, number)]
        scores: dict[str, tuple[np.ndarray, pa.Array]] = {}
        if tables:
            table = pa.concat_tables(tables)
            encoded = pa.concat_arrays(table.column(SOURCE).cast(pa.string()).chunks).dictionary_encode()
            code, rows = encoded.indices.to_numpy(), table.column(ROW).to_numpy()
            values = table.column(SCORE).combine_chunks()
            order = np.argsort(code, kind="stable")
            ends = np.cumsum(np.bincount(code))
            for name, places in zip(encoded.dictionary.to_pylist(), np.split(order, ends[:-1]), strict=True):
                scores[name] = (rows[places], values.take(pa.array(places)))
        self._csv.write(number, ranges, scores)

    def _ended_before(self, new_input: bool) -> None:
        begin_anew = "--fresh begins anew, another output folder begins another job"
        if new_input:
            self.notices.append(
                "there is new input, and it is NOT read: this job ran to its end before. To go on with files that come later, "
                f"run with drain=false from the start; {begin_anew}"
            )
        else:
            self.notices.append(f"this job ran to its end before: nothing was read, nothing has changed; {begin_anew}")


def stream_folder(output: Path, number: int) -> Path:
    """Where a stream keeps its Parquet files and its checkpoint."""
    return output if number == 0 else output / f"stream-{number}"


def clear(job: DetectSpec) -> None:
    """Deletes what a job left, and nothing else.

    Raises:
        JobError: the folder is not a job's.
    """
    output = Path(job.output)
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / CHECKPOINT / "job.json").exists():
        raise JobError(
            f"{output} holds files but is no output folder of Midstream; nothing was deleted. Choose another output."
        )
    number = 0
    while (folder := stream_folder(output, number)).joinpath(CHECKPOINT).exists():
        with lock(folder / CHECKPOINT / LOCK):
            state = folder / CHECKPOINT / STATE
            for name in json.loads(state.read_text())["sizes"] if state.exists() else ():
                (output / name).unlink(missing_ok=True)
            for name in (SCORES, ALARMS, DEAD_LETTERS, CHECKPOINT):
                shutil.rmtree(folder / name, ignore_errors=True)
        if number:
            folder.rmdir()
        elif job.registry is None:
            shutil.rmtree(output / "registry", ignore_errors=True)
        number += 1
    (output / REPORT).unlink(missing_ok=True)
    forget()
