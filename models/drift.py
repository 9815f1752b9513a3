"""Whether rows still look as those that a version was trained on: what is kept of the training rows, and the tests.

Of each column of the training rows a summary is kept with the version, some kilobytes: quantiles of a number, the counts of
the frequent values of a text. A window of new rows is compared with it: numbers by Kolmogorov and Smirnov's two-sample test,
texts by a chi-square test of homogeneity, missing values likewise.

The rows of a stream are seldom independent: neighbours are alike, and a test that takes each for news finds drift everywhere.
So both sides count as so many rows as their serial correlation leaves (rows / tau, tau the integrated autocorrelation time of
being above the median, or of being the most frequent value).

References:
    Stephens, "Use of the Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables", JRSS B 32,
        1970 (the correction for small samples).
    Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7, 1992 (tau by the initial positive sequence).
    Misra and Gries, "Finding repeated elements", 1982; both sketches are those of tfx_bsl.sketches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special
from tfx_bsl import sketches

Floats = npt.NDArray[np.float64]
QUANTILES = 256  # steps between the quantiles that are kept; a distance is right to 1 in so many
VALUES = 512  # distinct values of a text that are counted
KEPT_VALUES = 64
FEWEST_EXPECTED = 5.0  # rows of a value in both samples together (Cochran's rule); rarer ones count as one
_SKETCH_ERROR = 0.0005
_MOST_ROWS = 2**32


class Finding(NamedTuple):
    """What a test says of one column.

    Attributes:
        statistic: ks, chi2, or missing (chi2 of missing against there).
        distance: the largest difference of the distribution functions, the total variation, or that of the shares missing.
        p_value: how probable such a distance is without drift.
    """

    statistic: str
    distance: float
    p_value: float


@dataclass(frozen=True)
class Summary:
    """What is kept of one column.

    Attributes:
        rows: how many.
        missing: of these, null or NaN.
        tau: of the values that are there, 1 / tau count as independent.
        missing_tau: of the rows, 1 / missing_tau count as independent in whether they have a value.
        quantiles: of a number, `QUANTILES` + 1 of them, the least and the greatest value included; empty for a text.
        values: how often the most frequent values came; empty for a number.
    """

    rows: int
    missing: int
    tau: float
    missing_tau: float = 1.0
    quantiles: tuple[float, ...] = ()
    values: Mapping[str, int] | None = None

    @property
    def there(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    def compare(self, column: pa.ChunkedArray | pa.Array) -> list[Finding]:
        """Tests new rows of the column, in their order, against this."""
        found = []
        values = without_missing(column)
        if self.there and len(values):
            tau = autocorrelation_time(_indicator(values))
            sizes = self.there / self.tau, len(values) / tau
            found.append(self._numbers(values, sizes) if self.values is None else self._texts(values, sizes))
        missing = len(column) - len(values)
        if (missing or self.missing) and self.rows and len(column):
            shares = np.array([[self.missing / self.rows, missing / len(column)]])
            sizes = self.rows / self.missing_tau, len(column) / autocorrelation_time(_gaps(column))
            p_value = _chi2(np.vstack([shares, 1.0 - shares]), sizes)
            found.append(Finding("missing", float(abs(shares[0, 0] - shares[0, 1])), p_value))
        return found

    def _numbers(self, values: pa.Array, sizes: tuple[float, float]) -> Finding:
        new = np.sort(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
        grid = np.asarray(self.quantiles)
        distance = 0.0
        for side, offset in (("right", -1.0), ("left", 0.0)):
            # Where quantiles are the same there is a step; its upper and lower end are both compared.
            before = (np.searchsorted(grid, grid, side) + offset) / QUANTILES  # type: ignore[call-overload]
            now = np.searchsorted(new, grid, side) / len(new)  # type: ignore[call-overload]
            distance = max(distance, float(np.max(np.abs(before - now))))
        root = np.sqrt(sizes[0] * sizes[1] / (sizes[0] + sizes[1]))
        return Finding("ks", distance, float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance)))

    def _texts(self, values: pa.Array, sizes: tuple[float, float]) -> Finding:
        assert self.values is not None
        counted = {str(entry["values"]): entry["counts"] for entry in values.cast(pa.string()).value_counts().to_pylist()}
        known = list(self.values)
        before = np.array([*self.values.values(), 0], float) / self.there
        now = np.array([*(counted.get(name, 0) for name in known), 0], float) / len(values)
        before[-1], now[-1] = 1.0 - before.sum(), 1.0 - now.sum()
        return Finding("chi2", float(np.abs(before - now).sum() / 2), _chi2(np.column_stack([before, now]), sizes))


class Summariser:
    """Summarises a column that comes in pieces, in order."""

    def __init__(self) -> None:
        self._rows = self._missing = 0
        self._weighted_tau = self._weighted_missing_tau = 0.0
        self._quantiles = sketches.QuantilesSketch(_SKETCH_ERROR, _MOST_ROWS, 1)
        self._values = sketches.MisraGriesSketch(VALUES)
        self._is_text: bool | None = None

    def add(self, column: pa.ChunkedArray | pa.Array) -> None:
        """Takes the next rows; ValueError for a type that is neither number nor text."""
        values = without_missing(column)
        self._rows += len(column)
        self._missing += len(column) - len(values)
        self._is_text = is_text(column.type)
        self._weighted_missing_tau += len(column) * (autocorrelation_time(_gaps(column)) if len(values) < len(column) else 1.0)
        if not len(values):
            return
        self._weighted_tau += len(values) * autocorrelation_time(_indicator(values))
        if self._is_text:
            self._values.AddValues(values.cast(pa.string()))
        else:
            self._quantiles.AddValues(values.cast(pa.float64()))

    def summary(self) -> Summary:
        """Of all rows so far."""
        there = self._rows - self._missing
        tau = self._weighted_tau / there if there else 1.0
        missing_tau = self._weighted_missing_tau / max(self._rows, 1)
        if self._is_text:
            found = self._values.Estimate().to_pylist() if there else []
            least = 4 * there / VALUES if len(found) >= VALUES else 0  # below, a count is mostly the sketch's error
            values = {entry["values"].decode(): round(entry["counts"]) for entry in found[:KEPT_VALUES]}
            return Summary(
                self._rows, self._missing, tau, missing_tau, values={name: n for name, n in values.items() if n >= least}
            )
        quantiles = self._quantiles.GetQuantiles(QUANTILES).flatten().to_pylist() if there else []
        return Summary(self._rows, self._missing, tau, missing_tau, tuple(quantiles))


@dataclass(frozen=True)
class Reference:
    """What is kept of the rows that a version was trained on.

    Attributes:
        columns: by name; outputs of the model, as `score`, are those that the training rows got before they were learnt.
        rows: how many rows there were.
    """

    columns: Mapping[str, Summary]
    rows: int

    @classmethod
    def of(cls, rows: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> Reference:
        """Of rows that are all there; columns that are neither number nor text are left out."""
        found = {}
        for name in columns:
            if is_number(rows.schema.field(name).type) or is_text(rows.schema.field(name).type):
                summariser = Summariser()
                summariser.add(rows.column(name))
                found[name] = summariser.summary()
        return cls(found, rows.num_rows)

    def to_json(self) -> str:
        """As a JSON object."""
        columns = {name: asdict(summary) for name, summary in self.columns.items()}
        return json.dumps({"rows": self.rows, "columns": columns}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The inverse of `to_json`; ValueError if it is none."""
        try:
            content = json.loads(text)
            found = {name: Summary(**own | {"quantiles": tuple(own["quantiles"])}) for name, own in content["columns"].items()}
            return cls(found, content["rows"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a summary of training rows: {error!r} in {text[:80]!r}") from error


def is_number(kind: pa.DataType) -> bool:
    """Whether columns of this type are compared as numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether columns of this type are compared as texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def without_missing(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The values that are there, in one piece; infinite numbers are missing, too."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.drop_null()
    return column.filter(pc.is_finite(column)) if pa.types.is_floating(column.type) else column


def autocorrelation_time(indicator: npt.NDArray[np.bool_]) -> float:
    """1 + 2 * the sum of the autocorrelations, as far as neighbouring lags together are positive; 1 for independent rows."""
    rows = len(indicator)
    centred = indicator - indicator.mean() if rows else indicator
    if rows < 4 or not centred.any():
        return 1.0
    spectrum = np.abs(np.fft.rfft(centred, 2 * rows)) ** 2
    found = np.fft.irfft(spectrum)[: rows // 2]
    pairs = found[: len(found) // 2 * 2].reshape(-1, 2).sum(axis=1) / found[0]
    ends = np.flatnonzero(pairs <= 0)
    return float(max(2.0 * pairs[: ends[0] if len(ends) else None].sum() - 1.0, 1.0))


def _indicator(values: pa.Array) -> npt.NDArray[np.bool_]:
    if is_text(values.type):
        codes = values.dictionary_encode().indices.to_numpy()
        return codes == np.argmax(np.bincount(codes))
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers > np.median(numbers)


def _gaps(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    missing = pc.is_null(column, nan_is_null=True)
    return np.asarray(missing.to_numpy() if isinstance(missing, pa.ChunkedArray) else missing.to_numpy(zero_copy_only=False))


def _chi2(shares: Floats, sizes: tuple[float, float]) -> float:
    """The p-value of two samples of these sizes having the same shares; shares are (values, 2), each column adds up to 1."""
    pooled = shares @ np.asarray(sizes) / sum(sizes)
    rare = pooled * sum(sizes) < FEWEST_EXPECTED
    if rare.any():
        shares = np.vstack([shares[~rare], shares[rare].sum(axis=0)])
        pooled = np.append(pooled[~rare], pooled[rare].sum())
    shares, pooled = shares[pooled > 0], pooled[pooled > 0]
    if len(pooled) < 2:
        return 1.0
    statistic = np.sum((shares[:, 0] - shares[:, 1]) ** 2 / pooled) * sizes[0] * sizes[1] / sum(sizes)
    return float(special.chdtrc(len(pooled) - 1, statistic))
