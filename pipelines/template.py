"""Parameterised pipelines: a YAML file with declared, typed parameters and the job they fill in.

    name: serve
    description: ...
    parameters:
      input: {type: path, required: true, description: the files to read}
      window: {type: duration, default: 1d, description: ...}
    job:
      source: {path: "${input}"}

`${name}` alone stands for the parameter's value, with its type; inside text it is written out. A setting whose value is null
is left out. `${here}` is the folder of the template.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from pipelines.detection.job import DetectSpec
from pipelines.job import JobSpec
from transforms.durations import parse_duration

FOLDER = Path(__file__).parent / "templates"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, true and false: to YAML 1.1 the key `on` of a join is a boolean, too."""


_BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_REFERENCE = re.compile(r"\$\{(\w+)\}")


class TemplateError(ValueError):
    """A template or a parameter that is wrong; says what was expected, what came, what to do."""


def _duration(given: Any) -> Any:
    parse_duration(given)  # checked here, kept as written
    return given


def _list(given: Any) -> Any:
    return [item.strip() for item in given.split(",") if item.strip()] if isinstance(given, str) else given


# YAML reads `model: 7` as a number; as a name it is as good as any.
_Text = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) in (int, float) else given)]
_TYPES: dict[str, TypeAdapter[Any]] = {
    "string": TypeAdapter(_Text),
    "path": TypeAdapter(_Text),
    "integer": TypeAdapter(int),
    "number": TypeAdapter(FiniteFloat),
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
    def _holds_together(self) -> Parameter:
        if self.minimum is not None and self.type not in ("integer", "number"):
            raise ValueError(f"a minimum is for an integer or a number, not for a {self.type}")
        if self.required and self.default is not None:
            raise ValueError("a required parameter has no default; drop one of the two")
        for value in self.allowed or ():
            self._typed("allowed", value)
        if self.default is not None and not _references(self.default):
            self.read("default", self.default)
        return self

    @property
    def notes(self) -> str:
        """Type, values and default in a few words."""
        notes: list[str] = [self.type]
        if self.allowed:
            notes.append(f"one of {', '.join(map(str, self.allowed))}")
        if self.minimum is not None:
            notes.append(f"{self.minimum:g} or more")
        if self.required:
            notes.append("required")
        elif self.default is not None:
            notes.append(f"default {_text(self.default)}")
        return "; ".join(notes)

    def read(self, name: str, given: Any) -> Any:
        """The value of the parameter's type, from text or from YAML.

        Raises:
            ValueError: it does not fit.
        """
        value = self._typed(name, given)
        if self.allowed is not None and value not in [self._typed(name, allowed) for allowed in self.allowed]:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, self.allowed))}; got {value!r}")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"{name}: expected {self.minimum:g} or more, got {value!r}")
        return value

    def _typed(self, name: str, given: Any) -> Any:
        wanted = f"{name}: expected {'an' if self.type == 'integer' else 'a'} {self.type}"
        if isinstance(given, str) and not given.strip():
            raise ValueError(f"{wanted}, got nothing; leave the parameter out if it has no value")
        try:
            return _TYPES[self.type].validate_python(given)
        except ValidationError as error:
            reason = _message(error.errors()[0])
            raise ValueError(f"{wanted}, got {given!r} ({reason})") from None


class Template(BaseModel):
    """A template as its file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    parameters: dict[str, Parameter] = {}
    job: dict[str, Any]

    @model_validator(mode="after")
    def _knows_its_references(self) -> Template:
        defaults = [parameter.default for parameter in self.parameters.values()]
        unknown = sorted(set(_references([self.job, defaults])) - {"here", *self.parameters})
        if unknown:
            raise ValueError(
                f"there are references to {', '.join('${' + name + '}' for name in unknown)}, and no such parameters"
            )
        return self

    def fill(self, given: Mapping[str, Any], here: Path = FOLDER) -> JobSpec | DetectSpec:
        """The job with these parameters.

        Args:
            given: by name; text or a value of the parameter's type.
            here: the folder of the template.

        Raises:
            TemplateError: a parameter is unknown, missing or of the wrong type, or the job does not hold together. Names all
                faults.
        """
        values = _Values(self.parameters, given, here)
        if values.problems:
            raise TemplateError("\n".join(values.problems))
        job = _without_null_items(self.job, values)
        try:
            return _spec(job).model_validate(_filled(job, values))
        except ValidationError as error:
            lines = [_origin(job, fault["loc"]) + _message(fault) for fault in error.errors()]
            raise TemplateError(
                f"template {self.name}: the job does not hold together\n" + "\n".join(dict.fromkeys(lines))
            ) from None


def load(name_or_path: str) -> tuple[Template, Path]:
    """A template by its name among those that come with Midstream, or by the path of its file; and the folder it is in.

    Raises:
        TemplateError: there is none, or it is not a template.
    """
    is_path = "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path) if is_path else FOLDER / f"{name_or_path}.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
        return Template.model_validate(content), path.parent.absolute()
    except FileNotFoundError:
        close = difflib.get_close_matches(name_or_path, names(), 1)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise TemplateError(
            f"there is no template {name_or_path!r}; {hint} {', '.join(names())}, or give the path of a .yaml file"
        ) from None
    except ValidationError as error:
        faults = "\n".join(_origin({}, fault["loc"]) + _message(fault) for fault in error.errors())
        raise TemplateError(f"{path} is not a template:\n{faults}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise TemplateError(f"{path} is not a template: {error}") from None


def names() -> list[str]:
    """The templates that come with Midstream."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def _spec(job: Mapping[str, Any]) -> type[JobSpec] | type[DetectSpec]:
    return DetectSpec if job.get("kind") == "detect" else JobSpec


class _Values:
    """The parameters' values: those given as they are, defaults with their references to other parameters filled in."""

    def __init__(self, parameters: Mapping[str, Parameter], given: Mapping[str, Any], here: Path) -> None:
        self._parameters = parameters
        self._known: dict[str, Any] = {"here": str(here)}
        self._asked: list[str] = []
        self.problems = []
        for name in given:
            if name not in parameters:
                close = difflib.get_close_matches(name, parameters, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.problems.append(f"there is no parameter {name!r}{hint} (there are: {', '.join(parameters)})")
        for name, parameter in parameters.items():
            try:
                if name in given:
                    self._known[name] = parameter.read(name, given[name])
                elif parameter.required:
                    raise ValueError(f"{name} is missing: {parameter.description} (--param {name}=...)")
            except ValueError as error:
                self._known[name] = None
                self.problems.append(str(error))
        for name in parameters:
            try:
                self[name]
            except ValueError as error:
                self._known[name] = None
                self.problems.append(str(error))

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            if name in self._asked:
                raise ValueError(f"{name}: its default refers to itself, by way of {', '.join(self._asked)}")
            self._asked.append(name)
            default = self._parameters[name].default
            value = _filled(default, self) if _references(default) else default
            self._asked.remove(name)
            self._known[name] = None if value is None else self._parameters[name].read(name, value)
        return self._known[name]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for value in node for name in _references(value)]
    return _REFERENCE.findall(node) if isinstance(node, str) else []


def _filled(node: Any, values: _Values) -> Any:
    """With the values of the parameters; without what is null, and without what is empty because everything in it was null."""
    if isinstance(node, dict):
        kept = {key: _filled(value, values) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value is not None} or None
    if isinstance(node, list):
        return [value for value in (_filled(item, values) for item in node) if value is not None]
    if not isinstance(node, str):
        return node
    if whole := _REFERENCE.fullmatch(node):
        return values[whole[1]]
    if any(values[name] is None for name in _REFERENCE.findall(node)):
        return None
    return _REFERENCE.sub(lambda match: _text(values[match[1]]), node)


def _without_null_items(node: Any, values: _Values) -> Any:
    """The same references without the items of lists that come to nothing: places in lists are then those of the filled job."""
    if isinstance(node, dict):
        return {key: _without_null_items(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_null_items(item, values) for item in node if _filled(item, values) is not None]
    return node


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _origin(job: Any, place: tuple[int | str, ...]) -> str:
    """Where a fault is: the setting, and the parameter that it comes from."""
    node: Any = job
    for key in place:
        inside = key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int) and key < len(node)
        if not inside:
            break
        node = node[key]
    setting = ".".join(map(str, place))
    names = list(dict.fromkeys(_references(node))) if place else []
    if names:
        return f"{setting} (parameter{'s' * (len(names) > 1)} {', '.join(names)}): "
    return f"{setting}: " if setting else ""


def _message(fault: Any) -> str:
    if fault["type"] == "missing":
        return "is missing"
    if fault["type"] == "extra_forbidden":
        return "there is no such setting"
    return str(fault["msg"]).removeprefix("Value error, ")
