"""What a record is told of labels: against a slow oracle, however the stream is cut; a label from the future is caught."""

import numpy as np
import pyarrow as pa
import pytest

from models.learners.experts.inputs import CONTEXT, KnownLabels
from transforms.batches import EVENT_TIME, MAX_WATERMARK_US, SEQUENCE, TIME_TYPE
from transforms.label_context import HALF_LIVES_LABELS, LabelContext
from transforms.label_join import own_labels

SECOND = 1_000_000


def stream(rows, seed=3, labels=None, ties=False):
    """Records with their labels, some of which are missing, in order."""
    rng = np.random.default_rng([7, seed])
    times = np.arange(rows) // (2 if ties else 1) * SECOND
    label = rng.integers(0, 3, rows) if labels is None else labels
    return pa.RecordBatch.from_pydict(
        {
            EVENT_TIME: pa.array(times).cast(TIME_TYPE),
            SEQUENCE: np.arange(rows),
            "x": rng.normal(size=rows),
            "y": pa.array(label, mask=rng.random(rows) < 0.2),
        }
    )


def advance(operator, batch, cuts):
    """The column, with the stream cut into these parts; the labels come with their records, as in a graph."""
    state, given = {}, []
    for start, stop in zip([0, *cuts], [*cuts, batch.num_rows], strict=True):
        part = batch.slice(start, stop - start)
        records, labels = own_labels(part, operator.label, operator.delay_us)
        tables = {"records": pa.Table.from_batches([records]), "labels": pa.Table.from_batches([labels])}
        watermark = int(part.column(EVENT_TIME).cast(pa.int64())[-1].as_py()) if stop < batch.num_rows else MAX_WATERMARK_US
        state, out = operator.advance(state, tables, watermark)
        given.append(out["out"].column(CONTEXT).combine_chunks())
    column = pa.chunked_array(given).combine_chunks()
    return column.values.to_numpy().reshape(batch.num_rows, -1)


def without_answers(column, classes):
    """The column without what the online experts answer; those have tests of their own."""
    known = KnownLabels.of(1, classes)
    return np.delete(column, slice(known.labels, known.labels + known.answers), axis=1)


def oracle(batch, delay_us, classes, leak=0):
    """The same, one record after the other. With a `leak` a record knows labels from so much too soon."""
    times, labels = batch.column(EVENT_TIME).cast(pa.int64()).to_pylist(), batch.column("y").to_pylist()
    xs, expected = batch.column("x").to_pylist(), []
    for record, time in enumerate(times):
        known = [
            other
            for other, label in enumerate(labels)
            if label is not None and (times[other] + delay_us - leak, other) < (time, record)
        ]
        hot = np.eye(classes)[[labels[other] for other in known]] if known else np.zeros((1, classes))
        row = list(hot[-1])
        for half_life in HALF_LIVES_LABELS:
            weight = 0.5 ** (np.arange(len(hot))[::-1] / half_life)
            row += list(weight @ hot / weight.sum())
        expected.append([*row, np.float32(xs[known[-1]]) if known else np.nan])
    return np.array(expected, np.float32)


@pytest.mark.parametrize("delay", [0, 1, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_what_was_known_then(delay, ties):
    batch = stream(60, ties=ties)
    operator = LabelContext("y", ("x",), delay * SECOND, 3)
    given = without_answers(advance(operator, batch, []), 3)
    np.testing.assert_allclose(given, oracle(batch, delay * SECOND, 3), rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_it_does_not_depend_on_how_the_stream_is_cut(seed):
    batch = stream(200, seed)
    operator = LabelContext("y", ("x",), 7 * SECOND, 3)
    whole = advance(operator, batch, [])
    cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, 200), 12, replace=False).tolist())
    assert advance(operator, batch, cuts).tobytes() == whole.tobytes(), f"seed {seed}, cut at {cuts}"
    assert advance(operator, batch, list(range(1, 200))).tobytes() == whole.tobytes()


def test_a_label_is_not_known_before_its_time():
    """Another label of a record changes nothing for the records up to the moment when it becomes known."""
    delay = 5
    labels = np.zeros(40, np.int64)
    operator = LabelContext("y", ("x",), delay * SECOND, 3)
    before = advance(operator, stream(40, labels=labels), [])
    for changed in range(0, 40, 3):
        other = labels.copy()
        other[changed] = 2
        differs = np.flatnonzero((advance(operator, stream(40, labels=other), []) != before)[:, :-1].any(axis=1))
        assert not len(differs) or differs[0] >= changed + delay


def test_a_planted_leak_is_caught():
    """The oracle that lets records know labels too soon does not agree: the tests above would fail with such a fault."""
    batch = stream(60)
    given = without_answers(advance(LabelContext("y", ("x",), 5 * SECOND, 3), batch, []), 3)
    assert not np.allclose(given, oracle(batch, 5 * SECOND, 3, leak=SECOND), equal_nan=True)


def test_numbers_and_vocabularies():
    batch = stream(30, labels=np.linspace(0.0, 3.0, 30))
    given = advance(LabelContext("y", ("x",), SECOND), batch, [11])
    known = batch.column("y").to_pylist()
    last = [([label for label in known[:record] if label is not None] or [0.0])[-1] for record in range(30)]
    np.testing.assert_allclose(given[:, 0], last, rtol=1e-6)
    text = batch.set_column(3, "y", pa.array(["b", "a", "strange"] * 10))
    hot = advance(LabelContext("y", ("x",), SECOND, 2, ("a", "b")), text, [])[:, :2]
    assert hot[1:].tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]] * 9 + [[0.0, 1.0], [1.0, 0.0]]


def test_labels_of_records_that_never_come_are_let_go():
    operator = LabelContext("y", ("x",), 5 * SECOND, 3)
    records, labels = own_labels(stream(50), "y", 5 * SECOND)
    tables = {"records": pa.Table.from_batches([records.slice(0, 40)]), "labels": pa.Table.from_batches([labels])}
    state, _ = operator.advance({}, tables, 60 * SECOND)
    assert state["labels"].num_rows == 0
