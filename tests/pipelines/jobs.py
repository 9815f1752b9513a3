"""Small models, small inputs and a way to run a job in this process, for the tests of this folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import template as templates
from pipelines.summary import ABOUT_LABELS

START = np.datetime64("2026-01-01T00:00:00")


@cache
def module_type() -> type:
    import tensorflow as tf

    class Line(tf.Module):
        """score = slope * a + b, and whether it is above 0."""

        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = tf.Variable(slope, dtype=tf.float32)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.float32, "b")])
        def predict(self, a, b):
            score = self.slope * a + b
            return {"score": score, "prediction": tf.cast(score > 0, tf.int64)}

    return Line


def save_module(folder: Path, slope: float = 1.0) -> Path:
    """A `tf.Module` of the user's own."""
    import tensorflow as tf

    module = module_type()(slope)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.predict})
    return folder


def save_keras(folder: Path) -> Path:
    """A Keras model of the user's own: p = sigmoid(2 a - b + 0.5)."""
    import keras

    a, b = keras.Input((1,), name="a"), keras.Input((1,), name="b")
    layer = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Model({"a": a, "b": b}, {"p": layer(keras.layers.Concatenate()([a, b]))})
    layer.set_weights([np.array([[2.0], [-1.0]], np.float32), np.array([0.5], np.float32)])
    model.export(str(folder), verbose=False)
    return folder


def publish(registry: Path, saved_model: Path, model: str = "line", *, activate: bool = True) -> int:
    from models.activation_log import ActivationLog
    from models.registry import Registry

    version = Registry(str(registry)).publish(model, str(saved_model)).version
    if activate:
        ActivationLog(str(registry), model).activate(version, by="test", reason="test")
    return version


def records(rows: int, *, seed: int = 1, start: int = 0) -> pa.Table:
    """Records a second apart: time, id, a, b, and label = (a + b > 0). Three decimals, so that every format holds them."""
    draw = np.random.default_rng([seed, start])
    a, b = draw.normal(size=(2, rows)).round(3)
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "time": pa.array(np.datetime_as_string(START + number.astype("timedelta64[s]"), unit="s")),
            "id": pa.array(number),
            "a": pa.array(a),
            "b": pa.array(b),
            "label": pa.array((a.astype(np.float32) + b.astype(np.float32) > 0).astype(np.int64)),
        }
    )


def write_csv(file: Path, table: pa.Table | Sequence[str]) -> Path:
    """A table, or lines as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = list(table) if not isinstance(table, pa.Table) else [",".join(table.column_names)]
    if isinstance(table, pa.Table):
        lines += [",".join(map(str, row.values())) for row in table.to_pylist()]
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


class Ran(NamedTuple):
    """A job that ran: its summary, its folder, and what the user was told."""

    summary: dict[str, Any]
    output: Path
    finished: bool
    notices: list[str]

    @property
    def counts(self) -> dict[str, Any]:
        """The summary without what the clock says."""
        return {name: value for name, value in self.summary.items() if name not in ("seconds", "records_per_s")}

    def rows(self, name: str = "predictions") -> list[dict[str, Any]]:
        return read(self.output, name).to_pylist()

    def reasons(self) -> dict[str, int]:
        """Dead letters by reason."""
        return dict(Counter(letter["reason"] for letter in self.rows("dead_letters")))


def run(template: str, stop: Any = None, **params: Any) -> Ran:
    """Runs a template to its end in this process, and checks that its counts add up. Parameters that are None are left out."""
    from pipelines.execute import Execution

    found, here = templates.load(template)
    given = {name: str(value) for name, value in params.items() if value is not None}
    outcome = Execution(found.fill(given, here), stop=stop).run()
    ran = Ran(json.loads(outcome.to_json()), Path(given["output"]), outcome.finished, outcome.notices)
    if outcome.summary is not None and outcome.finished:
        assert not outcome.problems, outcome.problems
        check_counts(ran)
    return ran


def check_counts(ran: Ran) -> None:
    """Every record is a prediction, a dead letter or filtered, and no record is two of them: told from the files alone."""
    if ran.summary["lost"] is None:
        return
    predicted = [row["sequence"] for row in ran.rows()]
    dead = [
        row["sequence"] for row in ran.rows("dead_letters") if row["sequence"] is not None and row["reason"] not in ABOUT_LABELS
    ]
    assert len(set(predicted + dead)) == len(predicted) + len(dead)
    assert ran.summary["predictions"] == len(predicted)
    assert ran.summary["records"] == len(predicted) + len(dead) + ran.summary["filtered"]
    assert (ran.summary["lost"], ran.summary["duplicated"]) == (0, 0)


def read(output: Path, name: str = "predictions") -> pa.Table:
    """Rows of a job's output in order of `sequence`; without columns if there are none."""
    files = sorted((output / name).glob("part-*.parquet"))
    if not files:
        return pa.table({})
    return pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive").sort_by("sequence")


class World(NamedTuple):
    """What the tests of a session share: SavedModels of the user's own, and a registry with them.

    Models in the registry: `line` (a tf.Module, slope 1), `keras`, and `cold`, which was published and never activated.
    """

    line: Path
    steep: Path
    keras: Path
    registry: Path


def make_world(folder: Path) -> World:
    line, steep = save_module(folder / "line"), save_module(folder / "steep", slope=-2.0)
    world = World(line, steep, save_keras(folder / "keras"), folder / "registry")
    publish(world.registry, world.line)
    publish(world.registry, world.keras, "keras")
    publish(world.registry, world.line, "cold", activate=False)
    return world


class Serve:
    """Runs the serve template on a world's model `line`, with an output folder of its own each time unless one is named."""

    def __init__(self, world: World, folder: Path) -> None:
        self._defaults = {"registry": world.registry, "model": "line", "time": "time"}
        self._folder, self._runs = folder, 0

    def __call__(self, input: Any, **params: Any) -> Ran:
        self._runs += 1
        return run("serve", **{"input": input, "output": self._folder / f"out{self._runs}", **self._defaults, **params})
