"""Runs a graph in this process.

Beam's `DirectRunner` takes Prism when it finds its binary and the in-process runner otherwise; so that a job does the same thing everywhere, the
in-process one is named here.
"""

from __future__ import annotations

from collections.abc import Callable

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult


def run(build: Callable[[beam.Pipeline], None]) -> PipelineResult:
    """Builds a pipeline, runs it to its end and gives its result, with the metrics.

    Raises:
        Exception: whatever a step raised.
    """
    # Beam would read sys.argv, which holds Midstream's own arguments.
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    return result
