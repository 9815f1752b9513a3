"""Templates: those that come with Midstream, those of the user's own, and everything that can be wrong with either."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import template as templates
from pipelines.cli import main
from pipelines.detection.job import DetectSpec
from pipelines.job import JobSpec
from pipelines.template import Parameter, Template, TemplateError

NEEDED = {
    "classify": {"input": "in.csv", "label": "y"},
    "regress": {"input": "in.csv", "label": "y"},
    "serve": {"input": "in.csv", "registry": "models", "model": "price"},
    "learn": {"input": "in.csv", "registry": "models", "model": "price", "label": "y", "label_delay": "1d", "features": "a,b"},
    "learn-kafka": {
        **{"bootstrap": "localhost:9092", "topic": "orders", "registry": "models", "model": "price"},
        **{"label": "y", "label_delay": "1d", "features": "a,b"},
    },
    "serve-kafka": {"bootstrap": "localhost:9092", "topic": "orders", "registry": "models", "model": "price"},
    "classify-kafka": {"bootstrap": "b:9092", "topic": "t", "label": "y", "label_delay": "1d", "classes": "0,1"},
    "regress-kafka": {"bootstrap": "b:9092", "topic": "t", "label": "y", "label_delay": "1d"},
    "electricity": {},
    "cluster": {"input": "in.csv"},
    "select-features": {"input": "in.csv", "label": "y"},
    "cluster-kafka": {"bootstrap": "b:9092", "topic": "t"},
    "select-features-kafka": {"bootstrap": "b:9092", "topic": "t", "label": "y", "classes": "0,1"},
    "detect-anomalies": {"input": "in"},
    "detect-anomalies-kafka": {"bootstrap": "b:9092", "topic": "t", "alarms_topic": "a"},
}
JOB = {
    "name": "own",
    "kind": "serve",
    "source": {"path": "${input}"},
    "model": {"registry": "${registry}", "name": "m"},
    "output": "out",
}


def own(parameters: dict, job: dict | None = None) -> Template:
    return Template.model_validate({"name": "own", "description": "d", "parameters": parameters, "job": job or JOB})


def text(default=None, **more) -> dict:
    return {"type": "string", "description": "d", "default": default, **more}


def faults(template: Template, **given) -> list[str]:
    with pytest.raises(TemplateError) as refused:
        template.fill(given)
    return str(refused.value).splitlines()


class TestShipped:
    def test_there_is_one_test_case_for_each(self):
        assert set(templates.names()) == set(NEEDED)

    @pytest.mark.parametrize("name", NEEDED)
    def test_loads_and_fills(self, name):
        template, here = templates.load(name)
        job = template.fill(NEEDED[name], here)
        assert isinstance(job, JobSpec | DetectSpec)
        assert template.name == name

    @pytest.mark.parametrize("name", NEEDED)
    def test_every_default_can_be_given(self, name):
        """What `--help` says the default is can be typed, and changes nothing."""
        template, here = templates.load(name)
        typed = {
            key: str(parameter.default).lower() if isinstance(parameter.default, bool) else str(parameter.default)
            for key, parameter in template.parameters.items()
            if parameter.default is not None and "${" not in str(parameter.default)
        }
        assert template.fill(typed | NEEDED[name], here) == template.fill(NEEDED[name], here)

    @pytest.mark.parametrize("name", NEEDED)
    def test_help_lists_every_parameter(self, name):
        shown = CliRunner().invoke(main, ["run", name, "--help"], env={"COLUMNS": "100"})
        assert shown.exit_code == 0
        template, _ = templates.load(name)
        lines = shown.output.splitlines()
        assert all(len(line) <= 100 for line in lines)
        words = " ".join(shown.output.split())
        for key, parameter in template.parameters.items():
            assert any(line.split()[:1] == [key] for line in lines), f"{key} has a line of its own"
            assert f"{' '.join(parameter.description.split())} ({parameter.notes})" in words
            if parameter.default is not None:
                assert "default" in parameter.notes
        assert "None" not in shown.output
        assert "null" not in shown.output

    @pytest.mark.parametrize("name", NEEDED)
    def test_every_parameter_is_used(self, name):
        template, _ = templates.load(name)
        content = (templates.FOLDER / f"{name}.yaml").read_text()
        unused = [key for key in template.parameters if "${" + key + "}" not in content]
        assert not unused

    def test_registry_follows_the_output(self):
        template, here = templates.load("electricity")
        assert template.fill({"output": "elsewhere"}, here).model.registry == "elsewhere/registry"
        assert template.fill({"output": "elsewhere", "registry": "r"}, here).model.registry == "r"


class TestFaultsOfParameters:
    serve, _ = templates.load("serve")

    def test_all_at_once(self):
        found = faults(
            self.serve,
            inptu="x",
            registry="r",
            block_rows="0",
            drain="perhaps",
            mode="fast",
            every="soon",
            micro_batch_records="1.5",
        )
        assert found[0].startswith("there is no parameter 'inptu'; did you mean input?")
        assert any(line.startswith("input is missing: ") and line.endswith("(--param input=...)") for line in found)
        assert any(line.startswith("model is missing: ") for line in found)
        assert "block_rows: expected 1 or more, got 0" in found
        assert "mode: expected one of micro-batch, batch; got 'fast'" in found
        assert any(line.startswith("drain: expected a boolean, got 'perhaps'") for line in found)
        assert any(line.startswith("every: expected a duration, got 'soon'") and "30m" in line for line in found)
        assert any(line.startswith("micro_batch_records: expected an integer, got '1.5'") for line in found)
        assert len(found) == 8

    @pytest.mark.parametrize("given", ["", "   "])
    def test_nothing_is_no_value(self, given):
        assert faults(self.serve, **NEEDED["serve"] | {"input": given}) == [
            "input: expected a path, got nothing; leave the parameter out if it has no value"
        ]

    @pytest.mark.parametrize("given", ["nan", "inf", "1e999", "three"])
    def test_no_number(self, given):
        (found,) = faults(
            own({"input": text("a"), "registry": text("r"), "rate": {"type": "number", "description": "d"}}), rate=given
        )
        assert found.startswith("rate: expected a number")

    @pytest.mark.parametrize(("given", "wanted"), [("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), (["a"], ["a"])])
    def test_lists(self, given, wanted):
        assert Parameter(type="list", description="d").read("keys", given) == wanted

    def test_numbers_as_names(self):
        """YAML and shells know no difference between the text 7 and the number 7."""
        assert self.serve.fill(NEEDED["serve"] | {"model": 7}).model.name == "7"


class TestFaultsOfJobs:
    def test_settings_are_named_with_their_parameter(self):
        serve, _ = templates.load("serve")
        head, *found = faults(serve, **NEEDED["serve"], window_size="1h")
        assert head == "template serve: the job does not hold together"
        assert "steps.0.windows.kind (parameter windows): is missing" in found
        assert "steps.0.windows.aggregates (parameter aggregates): is missing" in found

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"label_delay": "1d"}, "labels.column (parameter label): is missing"),
            ({"label": "y"}, "labels want either `delay`"),
            ({"label": "y", "label_delay": "1d", "labels_input": "l.csv"}, "labels want either `delay`"),
            ({"label": "y", "labels_input": "l.csv"}, "a label stream wants `on`"),
            ({"every": "1s", "mode": "batch"}, "batch mode runs once"),
            ({"every": "0s"}, "(parameter every): expected a duration above 0"),
            ({"micro_batch": "0"}, "run.span (parameter micro_batch): expected a duration above 0"),
            ({"windows": "fixed", "aggregates": "total"}, "expected name=aggregate;name=aggregate, got 'total'"),
        ],
    )
    def test_serve(self, given, said):
        serve, _ = templates.load("serve")
        found = faults(serve, **NEEDED["serve"], **given)
        assert said in "\n".join(found)

    def test_learn_without_any_way_to_labels(self):
        learn, _ = templates.load("learn")
        given = {key: value for key, value in NEEDED["learn"].items() if key != "label_delay"}
        assert "labels want either `delay`" in "\n".join(faults(learn, **given))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"kind": "learn"}, "a job that learns (learn) wants a section `learner`"),
            ({"kind": "loop"}, "a job that learns (loop) wants"),
            (
                {"learner": {"features": ["a"]}, "labels": {"column": "y", "delay": "1d"}},
                "a job that only serves has no `learner`",
            ),
            ({"kind": "sing"}, "kind: Input should be 'serve', 'learn' or 'loop'"),
            ({"colour": "red"}, "colour: there is no such setting"),
            (
                {"steps": [{"filter": "a > 0", "map": {"b": "a"}}]},
                "a step is one of map, filter, lookup, lags, windows; got map, filter",
            ),
            ({"steps": [{"filter": "a > 0"}, {"windows": {"kind": "fixed"}}]}, "steps.1.windows.aggregates: is missing"),
            ({"source": {"path": "x", "time": {"start": "yesterday"}}}, "expected a time such as 2026-03-01T12:00:00Z"),
        ],
    )
    def test_own(self, change, said):
        assert said in "\n".join(faults(own({"input": text("i"), "registry": text("r")}, JOB | change)))


class TestReferences:
    def test_null_drops_the_setting_the_step_and_the_section(self):
        parameters = {"input": text("i"), "registry": text("r"), "none": text(), "also": text()}
        job = JOB | {
            "source": {"path": "${input}", "format": "${none}", "time": {"column": "${none}"}},
            "steps": [{"filter": "${none}"}, {"map": {"b": "a"}}, {"windows": {"kind": "${none}", "size": "${also}"}}],
            "labels": {"column": "${none}", "source": {"path": "${also}", "time": {"column": "${none}"}}},
            "keep": "${also}",
            "against": "folder/${none}",
        }
        filled = own(parameters, job).fill({})
        assert filled == own(parameters, JOB | {"steps": [{"map": {"b": "a"}}]}).fill({})

    def test_values_keep_their_type_and_are_text_inside_text(self):
        parameters = {
            "input": text("i"),
            "registry": text("r"),
            "rows": {"type": "integer", "description": "d", "default": 7},
            "drain": {"type": "boolean", "description": "d", "default": False},
            "keys": {"type": "list", "description": "d", "default": ["a", "b"]},
        }
        job = JOB | {
            "output": "out/${rows}-${drain}-${keys}",
            "run": {"records": "${rows}", "drain": "${drain}"},
            "keep": "${keys}",
        }
        filled = own(parameters, job).fill({"rows": "9"})
        assert (filled.output, filled.run.records, filled.run.drain, filled.keep) == ("out/9-false-a,b", 9, False, ("a", "b"))

    def test_defaults_may_refer_to_defaults(self):
        parameters = {"input": text("${registry}/x"), "registry": text("${root}/r"), "root": text("base")}
        assert own(parameters).fill({"root": "top"}).source.path == "top/r/x"

    def test_a_default_that_refers_to_itself(self):
        template = own({"input": text("${registry}"), "registry": text("${input}")})
        assert any("its default refers to itself" in line for line in faults(template))

    @settings(max_examples=50, deadline=None)
    @given(st.text(min_size=1).filter(lambda given: given.strip()))
    def test_what_a_user_types_is_taken_as_it_is(self, typed):
        """Also if it looks like a reference, as a file name may."""
        for given_text in (typed, "${registry}" + typed, "${nix}"):
            filled = own({"input": text(required=True), "registry": text("r")}).fill({"input": given_text})
            assert filled.source.path == given_text

    def test_undeclared(self):
        with pytest.raises(ValueError, match=r"references to \$\{inptu\}, \$\{other\}, and no such parameters"):
            own({"registry": text("${other}")}, JOB | {"source": {"path": "${inptu}"}})


class TestFiles:
    def write(self, folder: Path, content: str) -> str:
        file = folder / "own.yaml"
        file.write_text(content)
        return str(file)

    def test_of_the_users_own_by_path(self, tmp_path):
        content = {
            "name": "own",
            "description": "d",
            "job": JOB | {"source": {"path": "${here}/data.csv"}, "model": {"registry": "r", "name": "m"}},
        }
        template, here = templates.load(self.write(tmp_path, yaml.safe_dump(content)))
        assert template.fill({}, here).source.path == f"{tmp_path}/data.csv"

    def test_on_is_a_key_and_no_boolean(self, tmp_path):
        """YAML 1.1 reads `on` as true."""
        job = "{name: own, kind: serve, source: {path: in}, model: {registry: r, name: m}, output: out, steps: [{lookup: %s}]}"
        lookup = "{table: t.csv, on: key}"
        template, here = templates.load(self.write(tmp_path, f"name: own\ndescription: d\njob: {job % lookup}\n"))
        step = template.fill({}, here).steps[0]
        assert step.lookup is not None
        assert step.lookup.on == ("key",)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("name: [", "while parsing"),
            ("", "valid dictionary"),
            ("name: own\ndescription: d\n", "job: is missing"),
            ("name: own\ndescription: d\njob: {}\nparams: {}\n", "params: there is no such setting"),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: text, description: d}}\n",
                "parameters.a.type: Input should be 'string'",
            ),
            ("name: o\ndescription: d\njob: {}\nparameters: {a: {type: path}}\n", "parameters.a.description: is missing"),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: integer, default: x, description: d}}\n",
                "expected an integer, got 'x'",
            ),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: integer, default: 0, minimum: 1, description: d}}\n",
                "1 or more",
            ),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: string, default: x, allowed: [y], description: d}}\n",
                "one of y",
            ),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: string, default: x, required: true, description: "
                "d}}\n",
                "no default",
            ),
            (
                "name: o\ndescription: d\njob: {}\nparameters: {a: {type: string, minimum: 1, description: d}}\n",
                "a minimum is for",
            ),
            ("name: o\ndescription: d\njob: {x: '${b}'}\n", "references to ${b}"),
        ],
    )
    def test_broken(self, tmp_path, content, said):
        with pytest.raises(TemplateError) as refused:
            templates.load(self.write(tmp_path, content))
        assert "own.yaml is not a template" in str(refused.value)
        assert said in str(refused.value)
        assert "pydantic" not in str(refused.value)

    def test_not_text(self, tmp_path):
        (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(TemplateError, match="is not a template"):
            templates.load(str(tmp_path / "own.yaml"))

    @pytest.mark.parametrize(
        ("name", "said"),
        [("serv", "did you mean serve"), ("nix", ", ".join(templates.names())), ("./nix.yaml", "no template")],
    )
    def test_not_there(self, name, said):
        with pytest.raises(TemplateError, match=said):
            templates.load(name)
