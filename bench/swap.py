"""What a stream notices while its model is replaced: gaps between outputs, and a thousand swaps in one process.

    python -m bench.swap [--quick]

One thread predicts without a pause, batch after batch, and notes when each output is there. Meanwhile the model is replaced:
by one
with the graph of MobileNetV2 (keras.applications, random weights) behind the same inputs, or by other weights of the same
graph.
Every measurement runs in a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "bench" / "swap.json"
FEATURES = 16
BLOCK_ROWS = 16  # rows TensorFlow is given at a time: MobileNetV2 takes some 10 ms for them
STEADY_S = 4.0
AFTER = 40  # batches by the new model that count as part of the swap
SWAPS, FIRST_SWAPS = 1000, 50
WAYS = {
    "midstream": "Midstream, a new graph",
    "weights": "Midstream, new weights of the same graph",
    "thread": "a plain loading thread, a new graph",
    "in_line": "loading in line, a new graph",
    "beam": "Beam RunInference, a new graph",
    "beam_weights": "Beam RunInference, new weights of the same graph",
}


def make_models(folder: Path) -> None:
    """Versions 1 (an MLP), 2 (MobileNetV2), 3 (the MLP's graph, other weights), and for the thousand swaps some more."""
    import keras
    import tensorflow as tf

    from models.registry import Registry

    def mlp(seed: int, gain: float = 1.0) -> Any:
        draw = np.random.default_rng(seed)

        class Mlp(tf.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = tf.Variable(draw.normal(size=(FEATURES, 64)).astype(np.float32))
                self.second = tf.Variable(draw.normal(size=(64, 2)).astype(np.float32))

            @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32, "x")])
            def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"p": tf.nn.softmax(tf.nn.relu(x @ self.first) @ self.second * gain)}

        return Mlp()

    registry = Registry(str(folder / "registry"))

    def publish(module: Any) -> None:
        path = folder / "saved"
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})
        registry.publish("m", str(path))
        shutil.rmtree(path)

    publish(mlp(1))
    inputs = keras.Input((FEATURES,), name="x")
    image = keras.layers.Reshape((32, 32, 3))(keras.layers.Dense(32 * 32 * 3)(inputs))
    outputs = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=2)(image)
    keras.Model({"x": inputs}, {"p": outputs}).export(str(folder / "big"), verbose=False)
    registry.publish("m", str(folder / "big"))
    for seed in range(3, 43):  # 40 more of the same graph
        publish(mlp(seed))
    for graph in range(10):  # and 10 more graphs
        publish(mlp(100 + graph, gain=1.5 + graph))


def rows(count: int) -> pa.RecordBatch:
    values = np.random.default_rng(0).normal(size=count * FEATURES).astype(np.float32)
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), FEATURES)})


def _stream(predict: Callable[[], bool], replace: Callable[[], None] | None) -> np.ndarray:
    """Predicts, and replaces the model beside that; gives the gaps between outputs in ms, up to some outputs of the new one.

    Args:
        predict: one batch; says whether it was by the new model.
        replace: runs in a thread; None for a stream in peace.
    """
    worker = threading.Thread(target=replace) if replace is not None else None
    times, new, end = [time.perf_counter()], 0, time.perf_counter() + (STEADY_S if worker is None else 300)
    if worker is not None:
        worker.start()
    while new < AFTER and time.perf_counter() < end:
        new += predict()
        times.append(time.perf_counter())
    if worker is not None:
        worker.join()
    return np.diff(times) * 1e3


def measure_swap(way: str, registry_root: str) -> dict[str, float]:
    """One way of replacing the model, beside the same stream in peace."""
    if way.startswith("beam"):
        first, replace, predict = _beam(registry_root, 3 if way.endswith("weights") else 2)
    else:
        first, replace, predict = _ours(way, registry_root)
    for _ in range(200):
        first()
    steady = np.concatenate([_stream(first, None)])
    gc.collect()
    swap = _stream(predict, replace)
    loading = swap[:-AFTER]
    return {
        "steady_p50_ms": float(np.percentile(steady, 50)),
        "steady_p99_ms": float(np.percentile(steady, 99)),
        "steady_longest_ms": float(steady.max()),
        "loading_p50_ms": float(np.percentile(loading, 50)),
        "loading_p99_ms": float(np.percentile(loading, 99)),
        "loading_longest_ms": float(loading.max()),
        "longest_ms": float(swap.max()),
        "first_of_new_ms": float(swap[-AFTER]),
        "new_model_p50_ms": float(np.percentile(swap[-AFTER:], 50)),
    }


def _ours(way: str, registry_root: str) -> tuple[Callable[[], bool], Callable[[], None], Callable[[], bool]]:
    from models import preloading
    from models.registry import Registry
    from models.serving import ModelCache

    cache, batch = ModelCache(Registry(registry_root), block_rows=BLOCK_ROWS), rows(64)
    new = 3 if way == "weights" else 2
    ready = threading.Event()

    def replace() -> None:
        time.sleep(0.5)
        if way in ("midstream", "weights"):
            preloading.prepare(cache, "m", new)
        elif way == "thread":
            cache.get("m", new).predict(rows(BLOCK_ROWS))
        ready.set()

    def predict() -> bool:
        swapped = ready.is_set()
        cache.get("m", new if swapped else 1).predict(batch)
        return swapped

    def first() -> bool:
        cache.get("m", 1).predict(batch)
        return False

    return first, replace, predict


def _beam(registry_root: str, new: int) -> tuple[Callable[[], bool], Callable[[], None], Callable[[], bool]]:
    """Beam's DoFn with a SavedModel handler, given the new path as its side input would; in a runner there is more around
    it."""
    import tensorflow as tf
    from apache_beam.ml.inference.base import ModelHandler, ModelMetadata, _RunInferenceDoFn

    class Handler(ModelHandler):  # type: ignore[type-arg]
        def __init__(self, path: str) -> None:
            super().__init__()
            self._path = path

        def load_model(self) -> Any:
            return tf.saved_model.load(self._path)

        def update_model_path(self, model_path: str | None = None) -> None:
            self._path = model_path or self._path

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [model.signatures["serving_default"](x=tf.constant(np.stack(batch)))["p"].numpy()]

    class Clock:
        def time_ns(self) -> int:
            return time.time_ns()

    paths = {version: f"{registry_root}/m/{version}" for version in (1, new)}
    dofn = _RunInferenceDoFn(Handler(paths[1]), Clock(), "bench", load_model_at_runtime=True)
    dofn.setup()
    values = list(np.random.default_rng(0).normal(size=(64, FEATURES)).astype(np.float32))
    told = threading.Event()

    def predict(version: int) -> bool:
        list(dofn.process(values, None, ModelMetadata(paths[version], "m")))
        return version == new

    def replace() -> None:
        time.sleep(0.5)
        told.set()

    return lambda: predict(1), replace, lambda: predict(new if told.is_set() else 1)


def measure_many(registry_root: str, swaps: int) -> dict[str, float]:
    """Many swaps in one process: memory, files and speed after the first fifty and after the last."""
    from models.registry import Registry
    from models.serving import ModelCache

    registry = Registry(registry_root)
    cache, batch = ModelCache(registry, block_rows=1024), rows(4096)
    same = [1, *range(3, 43)]
    graphs = list(range(43, 53))
    noted: dict[int, tuple[float, int, float]] = {}
    begun, predicted = time.perf_counter(), 0
    for swap in range(1, swaps + 1):
        # Every tenth brings a graph that has left memory since; the others bring weights only.
        version = graphs[swap // 10 % len(graphs)] if swap % 10 == 0 else same[swap % len(same)]
        served = cache.get("m", version)
        for _ in range(3):
            served.predict(batch)
        predicted += 3 * batch.num_rows
        if swap in (FIRST_SWAPS, swaps - FIRST_SWAPS):
            begun, predicted = time.perf_counter(), 0
        if swap in (2 * FIRST_SWAPS, swaps):
            gc.collect()
            rate = predicted / (time.perf_counter() - begun)
            noted[swap] = _resident_mib(), len(os.listdir("/proc/self/fd")), rate  # noqa: PTH208
        if swap == FIRST_SWAPS:
            gc.collect()
            noted[swap] = _resident_mib(), len(os.listdir("/proc/self/fd")), 0.0  # noqa: PTH208
    first, last = noted[FIRST_SWAPS], noted[swaps]
    return {
        "swaps": swaps,
        "resident_first_mib": first[0],
        "resident_last_mib": last[0],
        "resident_ratio": last[0] / first[0],
        "files_first": first[1],
        "files_last": last[1],
        "records_s_first": noted[2 * FIRST_SWAPS][2],
        "records_s_last": last[2],
    }


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.swap", "--child", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


@click.command()
@click.option("--quick", is_flag=True, help="Once each, and fewer swaps.")
@click.option("--child", nargs=2, hidden=True)
def main(quick: bool, child: tuple[str, str] | None) -> None:
    """Measures, and prints a table and a line of JSON."""
    if child:
        what, folder = child
        if what == "models":
            make_models(Path(folder))
            print("{}")
        elif what.isdigit():
            print(json.dumps(measure_many(f"{folder}/registry", int(what))))
        else:
            print(json.dumps(measure_swap(what, f"{folder}/registry")))
        return
    folder = tempfile.mkdtemp(prefix="midstream-swap-")
    try:
        _child("models", folder)
        runs = 1 if quick else 3
        found: dict[str, dict[str, float]] = {}
        worst: dict[str, float] = {}
        for way in WAYS:
            all_runs = [_child(way, folder) for _ in range(runs if way in ("midstream", "weights") else 1)]
            # The machine may be shared: what another process does lengthens gaps, and nothing shortens them.
            found[way] = min(all_runs, key=lambda run: run["longest_ms"])
            worst[way] = max(run["longest_ms"] for run in all_runs)
        many = _child(str(200 if quick else SWAPS), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "steady p50", "p99", "longest", "while replacing p50", "p99", "longest gap", "in the worst run"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way, name in WAYS.items():
        run = found[way]
        figures = ("steady_p50_ms", "steady_p99_ms", "steady_longest_ms", "loading_p50_ms", "loading_p99_ms", "longest_ms")
        table.add_row(name, *(f"{run[figure]:.2f} ms" for figure in figures), f"{worst[way]:.1f} ms")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        f"{many['swaps']:,} swaps in one process, every tenth to another graph: resident {many['resident_first_mib']:,.0f} "
        "MiB after "
        f"the 50th, {many['resident_last_mib']:,.0f} after the last ({many['resident_ratio']:.3f} x), "
        f"{many['files_first']:.0f} and "
        f"{many['files_last']:.0f} open files, {many['records_s_first']:,.0f} and {many['records_s_last']:,.0f} records/s.\n"
        f"The best of {runs} for Midstream, by the longest gap; others once. {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}.",
        highlight=False,
    )
    line = {"bench": "swap", "ways": found, "longest_gap_in_the_worst_run_ms": worst, "many": many, "load": os.getloadavg()[0]}
    REPORT.write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
