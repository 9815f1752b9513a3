"""Runs a graph in this process.

Beam's `DirectRunner` takes Prism when it finds its binary and the in-process runner otherwise; so that a job does the same
thing everywhere, the in-process one is named here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.runners.worker import statesampler

# RunInference warns of this at every start where PyTorch is missing, which Midstream has no use for.
logging.getLogger().addFilter(lambda record: "Resource module is not available" not in record.getMessage())


class _Unsampled(statesampler.StateSampler):
    """Without the thread that samples which step takes how long: at the end of each bundle Beam waits until it wakes, up to
    0.2 s, and nothing here reads its figures."""

    def start(self) -> None:
        self.tracked_thread = threading.current_thread()
        statesampler.set_current_tracker(self)
        self.started = True

    def stop(self) -> None:
        statesampler.set_current_tracker(None)
        self.finished = True


statesampler.StateSampler = _Unsampled  # bundle processors take it from there


class DirectGraph:
    """A graph that is built once and run as often as wanted."""

    def __init__(self, build: Callable[[beam.Pipeline], None]) -> None:
        """Builds the graph.

        Args:
            build: adds it to an empty pipeline.
        """
        self._runner = _Remembering()
        # Beam would read sys.argv, which holds Midstream's own arguments.
        pipeline = beam.Pipeline(runner=self._runner, options=PipelineOptions([]))
        build(pipeline)
        pipeline.run()  # translates it and no more

    def run(self) -> PipelineResult:
        """Runs it to its end and gives its result, with the metrics.

        Raises:
            Exception: whatever a step raised.
        """
        # Building and translating a graph takes longer than running a small micro-batch.
        result = self._runner.run_again()
        result.wait_until_finish()
        return result

    def close(self) -> None:
        """Nothing was started."""


class _Remembering(FnApiRunner):
    """The in-process runner, which keeps the translated graph instead of running it at once."""

    def run_via_runner_api(self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions) -> PipelineResult:
        self._graph, self._options = beam_runner_api_pb2.Pipeline(), options
        self._graph.CopyFrom(pipeline_proto)
        return PipelineResult(PipelineState.DONE)

    def run_again(self) -> PipelineResult:
        """Runs what was kept."""
        copy = beam_runner_api_pb2.Pipeline()
        copy.CopyFrom(self._graph)
        return super().run_via_runner_api(copy, self._options)
