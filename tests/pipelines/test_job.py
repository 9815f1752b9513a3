"""Jobs: their identity, and that what is written down of one reads back as the same job."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import template as templates
from pipelines.job import JobSpec
from tests.pipelines.test_template import NEEDED

SERVE = {
    "name": "own",
    "kind": "serve",
    "source": {"path": "in"},
    "model": {"registry": "r", "name": "m"},
    "output": "out",
}
DURATIONS_US = st.integers(1, 10**15)


def test_durations_are_seconds_as_numbers_and_units_as_text():
    job = JobSpec.model_validate(SERVE | {"run": {"span": 2}, "source": {"path": "in", "out_of_orderness": "1h30m"}})
    assert job.run.span == 2_000_000
    assert job.source.out_of_orderness == 5_400_000_000


@pytest.mark.parametrize("name", NEEDED)
def test_json_of_shipped_templates_reads_back(name):
    template, here = templates.load(name)
    job = template.fill(NEEDED[name], here)
    assert type(job).model_validate_json(job.model_dump_json()) == job
    assert type(job).model_validate(json.loads(json.dumps(job.model_dump(mode="json")))) == job


@settings(max_examples=100, deadline=None)
@given(st.lists(DURATIONS_US, min_size=6, max_size=6), st.booleans())
def test_json_reads_back_with_any_durations(lengths_us, live):
    span, step, late, every, delay, trigger = (f"{length}us" for length in lengths_us)
    job = JobSpec.model_validate(
        SERVE
        | {
            "kind": "loop",
            "source": {"path": "in", "out_of_orderness": late, "time": {"step": step}},
            "steps": [{"windows": {"kind": "fixed", "size": every, "aggregates": {"n": "count()"}, "allowed_lateness": late}}],
            "labels": {"column": "y", "delay": delay},
            "learner": {"features": "a", "every": every},
            "run": {"span": span, "trigger": trigger if live else "available-now"},
        }
    )
    assert type(job).model_validate_json(job.model_dump_json()) == job
    assert job.run.span == lengths_us[0]


def test_identity_leaves_out_what_may_change():
    job = JobSpec.model_validate(SERVE)
    other = JobSpec.model_validate(SERVE | {"output": "elsewhere", "run": {"records": 7, "drain": False}})
    assert job.identity() == other.identity()
    for change in ({"keep": ["a"]}, {"source": {"path": "other"}}, {"model": {"registry": "r", "name": "n"}}, {"name": "x"}):
        assert JobSpec.model_validate(SERVE | change).identity() != job.identity()


def test_a_name_twice_is_one():
    assert JobSpec.model_validate(SERVE | {"keep": "a, b,a"}).keep == ("a", "b")


@pytest.mark.parametrize("aggregates", ["a=sum(x);a=mean(x)", "sum(x)", "=sum(x);=mean(x)"])
def test_aggregates_that_are_none(aggregates):
    step = {"windows": {"kind": "fixed", "size": "1s", "aggregates": aggregates}}
    with pytest.raises(ValidationError, match=r"expected (every )?name"):
        JobSpec.model_validate(SERVE | {"steps": [step]})
