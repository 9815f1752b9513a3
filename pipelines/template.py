"""Parameterised pipelines: a YAML file with declared, typed parameters and the job they fill in.

    name: serve
    description: ...
    parameters:
      input: {type: path, required: true, description: the files to read}
      window: {type: duration, default: 1d, description: ...}
    job:
      source: {path: "${input}"}

`${name}` alone stands for the parameter's value, with its type; inside text it is written out. A setting whose value is null is left out.
`${here}` is the folder of the template.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipelines.job import JobSpec
from transforms.durations import parse_duration

FOLDER = Path(__file__).parent / "templates"
_REFERENCE = re.compile(r"\$\{(\w+)\}")


class TemplateError(ValueError):
    """A template or a parameter that is wrong; says what was expected, what came, what to do."""


def _duration(given: Any) -> Any:
    parse_duration(given)  # checked here, kept as written
    return given


def _list(given: Any) -> Any:
    return [item.strip() for item in given.split(",")] if isinstance(given, str) else given


_TYPES: dict[str, TypeAdapter[Any]] = {
    "string": TypeAdapter(Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int | float) else given)]),
    "path": TypeAdapter(str),
    "integer": TypeAdapter(int),
    "number": TypeAdapter(float),
    "boolean": TypeAdapter(bool),
    "duration": TypeAdapter(Annotated[str | int | float, BeforeValidator(_duration)]),
    "list": TypeAdapter(Annotated[list[str], BeforeValidator(_list)]),
}


class Parameter(BaseModel):
    """A declared parameter.

    Attributes:
        type: string, path, integer, number, boolean, duration (`30m`), or list (`a,b,c`).
        description: a sentence for `--help`.
        default: its value if none is given; null leaves the settings out that refer to it.
        required: it has to be given.
        allowed: the values it may have.
        minimum: the least value of a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["string", "path", "integer", "number", "boolean", "duration", "list"]
    description: str = Field(min_length=1)
    default: Any = None
    required: bool = False
    allowed: tuple[Any, ...] | None = None
    minimum: float | None = None

    @model_validator(mode="after")
    def _default_fits(self) -> Parameter:
        if self.default is not None:
            self.read("default", self.default)
        return self

    def read(self, name: str, given: Any) -> Any:
        """The value of the parameter's type, from text or from YAML.

        Raises:
            ValueError: it does not fit.
        """
        try:
            value = _TYPES[self.type].validate_python(given)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{name}: expected a {self.type}, got {given!r} ({reason})") from None
        if self.allowed is not None and value not in self.allowed:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, self.allowed))}; got {value!r}")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"{name}: expected {self.minimum:g} or more, got {value!r}")
        return value


class Template(BaseModel):
    """A template as its file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    parameters: dict[str, Parameter]
    job: dict[str, Any]

    def fill(self, given: Mapping[str, Any], here: Path = FOLDER) -> JobSpec:
        """The job with these parameters.

        Raises:
            TemplateError: a parameter is unknown, missing or of the wrong type, or the job does not hold together.
        """
        problems = []
        for name in given:
            if name not in self.parameters:
                close = difflib.get_close_matches(name, self.parameters, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                problems.append(f"there is no parameter {name!r}{hint} (there are: {', '.join(self.parameters)})")
        values: dict[str, Any] = {"here": str(here)}
        for name, parameter in self.parameters.items():
            if name in given:
                try:
                    values[name] = parameter.read(name, given[name])
                except ValueError as error:
                    problems.append(str(error))
            elif parameter.required:
                problems.append(f"{name} is missing: {parameter.description} (--param {name}=...)")
            else:
                values[name] = parameter.default
        if problems:
            raise TemplateError("\n".join(problems))
        # A default may refer to another parameter, as a registry inside the output folder does.
        values = {name: _substitute(value, values) if isinstance(value, str) else value for name, value in values.items()}
        try:
            return JobSpec.model_validate(_pruned(_substitute(self.job, values)))
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'job'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
            raise TemplateError(f"template {self.name}: the job does not hold together\n" + "\n".join(lines)) from None


def load(name_or_path: str) -> tuple[Template, Path]:
    """A template by its name among those that come with Midstream, or by the path of its file; and the folder it is in.

    Raises:
        TemplateError: there is none, or it is not a template.
    """
    path = FOLDER / f"{name_or_path}.yaml" if "/" not in name_or_path and not name_or_path.endswith(".yaml") else Path(name_or_path)
    try:
        content = yaml.safe_load(path.read_text())
        return Template.model_validate(content), path.parent.absolute()
    except FileNotFoundError:
        raise TemplateError(f"there is no template {name_or_path!r}; there are {', '.join(names())}, or give the path of a .yaml file") from None
    except (yaml.YAMLError, ValidationError, OSError) as error:
        raise TemplateError(f"{path} is not a template: {error}") from None


def names() -> list[str]:
    """The templates that come with Midstream."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def _substitute(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, values) for value in node]
    if not isinstance(node, str):
        return node
    for name in _REFERENCE.findall(node):
        if name not in values:
            raise TemplateError(f"the template refers to {'${' + name + '}'}, which is not among its parameters")
    if whole := _REFERENCE.fullmatch(node):
        value = values[whole[1]]
        return value if value != node else None
    return _REFERENCE.sub(lambda match: str(values[match[1]]), node)


def _pruned(node: Any) -> Any:
    """Without what is null, and without what is empty because everything in it was null."""
    if isinstance(node, dict):
        kept = {key: _pruned(value) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value is not None} or None
    if isinstance(node, list):
        return [value for value in map(_pruned, node) if value is not None]
    return node
