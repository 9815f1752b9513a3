"""Anomaly scores as a stateful step: one model a series, thousands of series side by side, rows in the order in which they
came.

A row is scored by what its series was before it, and then learnt; so the scores follow from the rows and their order alone,
and cutting the stream into other micro-batches changes nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.anomaly.clock import phases
from models.opened import shared_log, shared_registry
from models.timeline import COLD_START
from transforms.batches import EVENT_TIME, ROW, SEQUENCE, SOURCE, event_time_us
from transforms.operators import State, Tables

SCORE, P_VALUE, ALARM = "anomaly_score", "p_value", "alarm"
MODEL, VERSION, DIGEST = "model", "version", "digest"  # the lineage of a score
IN, OUT, ALARMS = "in", "out", "alarms"
SERIES = "series"  # the table of states, one row a series
_SEPARATOR = "\x1f"  # between the columns of a key; in ASCII, too, the unit separator

if TYPE_CHECKING:
    from models.anomaly.saved import Leaves, Shape, Step

_loaded: dict[object, Step] = {}
_loading = threading.Lock()


class DetectorVersion(NamedTuple):
    """A published detector.

    Attributes:
        registry: root folder of the registry.
        model: its name.
        version, digest: of the model.
        by: the job, which seals the activation log up to what it scores.
    """

    registry: str
    model: str
    version: int
    digest: str
    by: str


class _Stretch(NamedTuple):
    """Rows that one version scores at once: their places in the table, in order."""

    places: npt.NDArray[np.int64]
    version: DetectorVersion | None


@dataclass(frozen=True)
class Detect:
    """Scores rows; see the module's docstring.

    Attributes:
        values: the columns that are scored together, float64.
        by: columns that name the series a row belongs to; without any, each file is a series.
        season_us: length of the season.
        weekends: whether workdays and weekends differ.
        false_alarm_rate: the share of rows of a stream without anomalies that may raise an alarm.
        seed: of random projections.
        version: the published detector that the job began with; what scores a row is the newest activation at its event time.
            None for this process's own, whose scores have no lineage.
    """

    values: tuple[str, ...]
    by: tuple[str, ...] = ()
    season_us: int = 86_400_000_000
    weekends: bool = True
    false_alarm_rate: float = 1e-3
    seed: int = 7
    version: DetectorVersion | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The rows with their scores, and those of them that raised an alarm."""
        return (OUT, ALARMS)

    @property
    def columns(self) -> list[str]:
        """The columns of what comes out."""
        lineage = (MODEL, VERSION, DIGEST) if self.version is not None else ()
        return [EVENT_TIME, SOURCE, ROW, SEQUENCE, *self.by, *self.values, SCORE, P_VALUE, ALARM, *lineage]

    def advance(self, state: State, inputs: Tables, watermark_us: int) -> tuple[State, Tables]:
        """Scores the rows that came; waits for nothing. A row with a missing value has no score and is not learnt."""
        rows = inputs.get(IN)
        if rows is None or not rows.num_rows:
            return state, {}
        names, code = _series(rows, self.by)
        known = state.get(SERIES)
        leaves = _read_states(known, names, self._empty)
        x = np.stack([rows.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in self.values], axis=1)
        phase, kind = phases(event_time_us(rows).to_numpy(), self.season_us, self.weekends)
        given = np.empty((rows.num_rows, 3), np.float32)
        by_version = self._by_version(rows, code)
        for places, version in by_version:
            given[places] = self._score(leaves, code[places], x[places], phase[places], kind[places], version)
        missing = np.isnan(given[:, 0])
        scored = rows.select([name for name in self.columns if name in rows.column_names])
        for name, values in ((SCORE, given[:, 0]), (P_VALUE, given[:, 1])):
            scored = scored.append_column(name, pa.array(values, pa.float32(), mask=missing))
        # Comparisons with NaN are false: a row without a score raises no alarm.
        scored = scored.append_column(ALARM, pa.array((given[:, 2] > 0) & (given[:, 1] <= self.false_alarm_rate)))
        if self.version is not None:
            for name, column in _lineage(by_version, scored.num_rows).items():
                scored = scored.append_column(name, column)
        state = {SERIES: _written_states(known, names, leaves)}
        return state, {OUT: scored, ALARMS: scored.filter(scored.column(ALARM))}

    def wake_us(self, state: State) -> int | None:
        """Nothing waits."""
        return None

    def _by_version(self, rows: pa.Table, code: npt.NDArray[np.int64]) -> list[_Stretch]:
        """The places of the rows by the version that scores them, stretch by stretch of their series, in order.

        The log is sealed up to the last row first: from then on it says the same of these rows in every try. The states go on
        from version to version.
        """
        if self.version is None:
            return [_Stretch(np.arange(rows.num_rows), None)]
        first, times = self.version, event_time_us(rows).to_numpy()
        log = shared_log(first.registry, first.model)
        log.seal(int(times.max()) + 1, by=first.by)
        live = log.timeline().as_of(times)
        live = np.where(live == COLD_START, first.version, live)
        order = np.argsort(code, kind="stable")
        changes = np.flatnonzero((np.diff(live[order]) != 0) & (np.diff(code[order]) == 0)) + 1
        swaps = np.zeros(len(code), np.int64)  # of its series before a row, in this call
        swaps[order[changes]] = 1
        total = np.cumsum(swaps[order])
        begins = np.searchsorted(code[order], code[order])
        swaps[order] = total - total[begins]  # no series begins with a change
        stretches = []
        for swap, number in np.unique(np.stack([swaps, live], axis=1), axis=0).tolist():
            manifest = shared_registry(first.registry).manifest(first.model, number)
            version = first._replace(version=number, digest=manifest.digests.version)
            stretches.append(_Stretch(np.flatnonzero((swaps == swap) & (live == number)), version))
        return stretches

    @property
    def _empty(self) -> Leaves:
        return _detector(len(self.values), self.seed, self.version).empty

    def _score(
        self,
        leaves: Leaves,
        code: npt.NDArray[np.int64],
        x: npt.NDArray[np.float64],
        phase: npt.NDArray[np.int32],
        kind: npt.NDArray[np.int32],
        version: DetectorVersion | None,
    ) -> npt.NDArray[np.float32]:
        """Scores rows, block by block; brings `leaves` forward in place. Returns (rows, 3)."""
        step = _detector(len(self.values), self.seed, version)
        _check_states(leaves, step.empty, version)
        order = np.argsort(code, kind="stable")
        counts = np.bincount(code, minlength=len(leaves[0]))
        within = np.empty(len(code), np.int64)  # of its series a row's number in this call
        within[order] = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
        given = np.empty((len(code), 3), np.float32)
        for shape, group in _by_shape(counts, step.shapes):
            rank = np.full(len(counts), -1)
            rank[group] = np.arange(len(group))
            places = np.flatnonzero(rank[code] >= 0)
            # A series' rows lie in one lane of a block, one call behind the other.
            calls = -(-int(counts[group].max()) // shape.rows)
            call = rank[code[places]] // shape.keys * calls + within[places] // shape.rows
            places = places[np.argsort(call, kind="stable")]
            ends = np.cumsum(np.bincount(call, minlength=-(-len(group) // shape.keys) * calls))
            for block, first in enumerate(range(0, len(group), shape.keys)):
                keys = group[first : first + shape.keys]
                held = [_padded(leaf[keys], start, shape.keys) for leaf, start in zip(leaves, step.empty, strict=True)]
                for number in range(block * calls, block * calls + -(-int(counts[keys].max()) // shape.rows)):
                    own = places[ends[number - 1] if number else 0 : ends[number]]
                    row, lane = within[own] % shape.rows, rank[code[own]] - first
                    values = np.full((shape.rows, shape.keys, x.shape[1]), np.nan)
                    when = np.zeros((2, shape.rows, shape.keys), np.int32)
                    values[row, lane], when[0, row, lane], when[1, row, lane] = x[own], phase[own], kind[own]
                    held, scores = step(held, values, when[0], when[1], int(row.max()) + 1)
                    given[own] = scores[row, lane]
                for leaf, new in zip(leaves, held, strict=True):
                    leaf[keys] = new[: len(keys)]
        return given


def _by_shape(counts: npt.NDArray[np.int64], shapes: list[Shape]) -> list[tuple[Shape, npt.NDArray[np.int64]]]:
    """The series that have rows, by the shape of the blocks they are scored in.

    Series with about as many rows go together, so that few places of a block stay empty. Both shapes give the same bits: which
    one is taken is a matter of time.
    """
    keys = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if len(shapes) < 2:
        return [(shapes[0], keys)]
    long, short = shapes
    few = counts[keys] <= short.rows
    if np.count_nonzero(few) <= long.keys:
        return [(long, keys)]
    return [(shape, group) for shape, group in ((long, keys[~few]), (short, keys[few])) if len(group)]


def _detector(columns: int, seed: int, version: DetectorVersion | None) -> Step:
    """The compiled step over lists of arrays."""
    from models.anomaly.saved import Step, exported
    from models.registry import Registry

    # Versions with the same digest are the same graph, wherever they are: compiling one takes seconds.
    key: object = (columns, seed) if version is None else version.digest
    with _loading:
        if key not in _loaded:
            if version is None:
                folder = exported(columns, seed)
            else:
                _, folder = Registry(version.registry).trusted(version.model, version.version, graph=True)
            _loaded[key] = Step(folder)
        return _loaded[key]


def _check_states(leaves: Leaves, empty: Leaves, version: DetectorVersion | None) -> None:
    """A version goes on with the states of the one before only if they have the same form."""
    held, wanted = ([(leaf.shape[1:], leaf.dtype) for leaf in given] for given in (leaves, empty))
    if held != wanted and version is not None:
        raise ValueError(
            f"version {version.version} of {version.model} keeps other states of a series than the detector before it, so it "
            "cannot go on with them. Roll back to the version before, and begin a job of its own with this one"
        )


def _lineage(stretches: list[_Stretch], rows: int) -> dict[str, pa.Array]:
    place = np.empty(rows, np.int64)
    for number, (places, _) in enumerate(stretches):
        place[places] = number
    versions = [version for _, version in stretches if version is not None]
    known = {
        MODEL: pa.array([version.model for version in versions], pa.string()),
        VERSION: pa.array([version.version for version in versions], pa.int64()),
        DIGEST: pa.array([version.digest for version in versions], pa.string()),
    }
    return {name: values.take(pa.array(place)) for name, values in known.items()}


def _series(rows: pa.Table, by: tuple[str, ...]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The names of the series, and for each row the place of its own among them."""
    columns = [rows.column(name).cast(pa.string()) for name in by or (SOURCE,)]
    name = columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, _SEPARATOR, null_handling="replace")
    encoded = pc.fill_null(name, "").combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _padded(leaf: npt.NDArray[Any], empty: npt.NDArray[Any], keys: int) -> npt.NDArray[Any]:
    return leaf if len(leaf) == keys else np.concatenate([leaf, np.repeat(empty, keys - len(leaf), axis=0)])


def _read_states(known: pa.Table | None, names: pa.Array, empty: Leaves) -> Leaves:
    """The states of these series, leaf by leaf; that of a new one is empty."""
    leaves = [np.repeat(leaf, len(names), axis=0) for leaf in empty]
    if known is None:
        return leaves
    place = pc.index_in(names, known.column(SERIES)).fill_null(-1).to_numpy()
    old = place >= 0
    for number, leaf in enumerate(leaves):
        if not leaf.size:
            continue  # as the covariance of a single column
        column = pa.concat_arrays(known.column(str(number)).chunks)
        size = leaf[0].size
        stored = np.frombuffer(column.buffers()[1], leaf.dtype, (column.offset + len(column)) * size)[column.offset * size :]
        leaf[old] = stored.reshape(len(column), *leaf.shape[1:])[place[old]]
    return leaves


def _written_states(known: pa.Table | None, names: pa.Array, leaves: Leaves) -> pa.Table:
    """The table of states: series that were there keep their place, new ones come behind."""
    stored = {str(number): _binary(leaf) for number, leaf in enumerate(leaves) if leaf.size}
    new = pa.table({SERIES: names, **stored})
    if known is None:
        return new
    place = pc.index_in(known.column(SERIES), names)
    came = pc.is_in(names, known.column(SERIES))
    both = pa.concat_tables([known, new])
    # Where a series had rows, its new state stands in for the old one.
    stay = np.arange(known.num_rows)
    took = place.fill_null(-1).to_numpy()
    stay = np.where(took >= 0, known.num_rows + took, stay)
    fresh = known.num_rows + np.flatnonzero(~came.to_numpy(zero_copy_only=False))
    return both.take(pa.array(np.concatenate([stay, fresh]))).combine_chunks()


def _binary(leaf: npt.NDArray[Any]) -> pa.Array:
    """(series, ...) as one fixed-size binary value a series."""
    return pa.Array.from_buffers(pa.binary(leaf[0].nbytes), len(leaf), [None, pa.py_buffer(np.ascontiguousarray(leaf))])
