"""A spec: YAML in, frozen and checked values out. Unknown keys are refused with the nearest known one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from factory.engines.budget import Limits
from factory.errors import SpecError, nearest
from factory.resources import specs_folder
from factory.steps import load_step

Options = dict[str, Any]


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which `on`, `off`, `yes` and `no` are the words that they are, as in YAML 1.2."""


_BOOL = "tag:yaml.org,2002:bool"
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_FROZEN = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ImportStage(BaseModel):
    """Read a file into a dataset."""

    model_config = _FROZEN
    path: str = Field(alias="import")
    into: str
    shape: str = "auto"
    language: str = ""


class GenerateStage(BaseModel):
    """Make records from the kept prompts of a dataset."""

    model_config = _FROZEN
    generate: str
    source: str = Field(alias="from")
    into: str
    options: Options = Field(default={}, alias="with")


class FilterStage(BaseModel):
    """Judge the records of a dataset."""

    model_config = _FROZEN
    filter: str
    on: str
    name: str = ""
    options: Options = Field(default={}, alias="with")


class AuditStage(BaseModel):
    """Run audits: each is a query whose rows are violations."""

    model_config = _FROZEN
    audit: list[str]
    options: Options = Field(default={}, alias="with")


class TrainStage(BaseModel):
    """Train on a dataset or on the result of a query."""

    model_config = _FROZEN
    train: str
    on: str
    name: str = ""
    options: Options = Field(default={}, alias="with")


class EvaluateStage(BaseModel):
    """Measure models."""

    model_config = _FROZEN
    evaluate: str
    name: str = ""
    options: Options = Field(default={}, alias="with")


class ExportStage(BaseModel):
    """Write a dataset or the result of a query to a folder, named from where the command is run."""

    model_config = _FROZEN
    export: str
    to: str
    kind: Literal["prompts", "sft", "pairs"] = "sft"
    format: str = Field(default="trl", alias="for")


Stage = ImportStage | GenerateStage | FilterStage | AuditStage | TrainStage | EvaluateStage | ExportStage
_STAGES: dict[str, type[BaseModel]] = {
    "import": ImportStage,
    "generate": GenerateStage,
    "filter": FilterStage,
    "audit": AuditStage,
    "train": TrainStage,
    "evaluate": EvaluateStage,
    "export": ExportStage,
}


class EngineSpec(BaseModel):
    """An engine by its file name, and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str

    @property
    def options(self) -> Options:
        return dict(self.model_extra or {})


class Spec(BaseModel):
    """A whole spec. `folder` is where its relative paths start."""

    model_config = _FROZEN
    name: str
    seed: int = 0
    engines: dict[str, EngineSpec] = {}
    budget: Limits = Limits()
    stages: tuple[Annotated[Any, "Stage"], ...]
    folder: Path = Path(".")


def load_spec(path: Path) -> Spec:
    """Read and check a spec: its keys, its steps and their options. Raises SpecError with file, line and mend."""
    if not path.exists():
        there = [str(p) for p in (*path.parent.glob("*.yaml"), *specs_folder().glob("*.yaml"))]
        raise SpecError(f"no spec at {path}; {nearest(str(path), there)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    try:
        raw, tree = yaml.load(text, Loader=_Yaml), yaml.compose(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("stages"), list):
        raise SpecError(f"{path}: a spec is a mapping with `name` and a list of `stages`; see specs/mini.yaml")
    return _parsed(raw, path, tree, path.parent)


def parse_spec(raw: dict[str, Any]) -> Spec:
    """A spec from values instead of a file: what the command line makes of its options."""
    tree = yaml.compose(yaml.safe_dump(raw, sort_keys=False), Loader=_Yaml)
    return _parsed(raw, Path("command line"), tree, Path())


def _parsed(raw: dict[str, Any], path: Path, tree: yaml.Node | None, folder: Path) -> Spec:
    assert tree is not None, "a mapping was parsed, so there is a document"
    stages = tuple(_stage(stage, path, tree, i) for i, stage in enumerate(raw["stages"]))
    spec: Spec = _checked(Spec, raw | {"stages": stages, "folder": folder}, path, tree, ())
    _check_names(spec, path, tree)
    return spec


def stage_title(stage: Stage) -> str:
    """How a stage is called in messages: `generate self_instruct`."""
    kind, name = next(
        (k, getattr(stage, "path" if k == "import" else k)) for k, c in _STAGES.items() if type(stage) is c
    )
    return f"{kind} {' '.join(name) if isinstance(name, list) else name}"


def stage_name(stage: Stage) -> str:
    """The name by which "@name" and the store know a stage: its own, or its step's."""
    return getattr(stage, "name", "") or stage_title(stage).split(" ", 1)[1]


def load_stage_step(stage: GenerateStage | FilterStage | TrainStage | EvaluateStage, spec: Spec) -> Any:
    """The step object of a stage, with its options checked."""
    kind, name = stage_title(stage).split(" ", 1)
    return load_step(kind, name, stage.options, spec.folder)


def datasets_read(stage: Stage) -> list[str]:
    """The datasets that a stage names as its input; a query names none."""
    named = (getattr(stage, "source", ""), getattr(stage, "on", ""), getattr(stage, "export", ""))
    return [n for n in named if n and " " not in n]


def datasets_missing(spec: Spec, stored: Sequence[str]) -> None:
    """Raise SpecError for a dataset that no earlier stage fills and that the store does not hold either."""
    filled = set(stored)
    for stage in spec.stages:
        for name in datasets_read(stage):
            if name not in filled:
                hint = nearest(name, sorted(filled))
                raise SpecError(f"{stage_title(stage)}: nothing fills dataset {name!r} before it; {hint}")
        filled |= {getattr(stage, "into", "")}


def _stage(raw: Any, path: Path, tree: yaml.Node, place: int) -> BaseModel:
    kinds = [k for k in _STAGES if isinstance(raw, dict) and k in raw]
    if len(kinds) != 1:
        found = f"{list(raw)}" if isinstance(raw, dict) else repr(raw)
        hint = nearest(str(next(iter(raw), "")), list(_STAGES)) if isinstance(raw, dict) else ""
        line = _line(tree, ("stages", place))
        raise SpecError(f"{path} line {line}: a stage names one of {', '.join(_STAGES)}; found {found}. {hint}")
    checked: BaseModel = _checked(_STAGES[kinds[0]], raw, path, tree, ("stages", place))
    return checked


def _checked(model: type[BaseModel], raw: Any, path: Path, tree: yaml.Node, at: tuple[str | int, ...]) -> Any:
    try:
        return TypeAdapter(model).validate_python(raw)
    except ValidationError as error:
        # a misspelt key also leaves the right one missing: the misspelling is the news
        first = min(error.errors(), key=lambda e: not e["type"].startswith(("extra", "unexpected")))
        loc = tuple(x for x in first["loc"] if not str(x).startswith("function"))
        known = [f.alias or n for n, f in model.model_fields.items() if n != "folder"]
        if first["type"].startswith(("extra", "unexpected")):
            names = known if len(loc) == 1 else ["calls", "tokens", "usd"]
            said = f"no key {str(loc[-1])!r} here; {nearest(str(loc[-1]), names)}"
        else:
            said = f"{'.'.join(map(str, loc))}: {first['msg'].lower()}"
        raise SpecError(f"{path} line {_line(tree, (*at, *loc))}: {said}") from error


def _check_names(spec: Spec, path: Path, tree: yaml.Node) -> None:
    """Steps, options, engines, datasets and "@names" that a run would stumble over only later."""
    checkpoints, filters = set[str](), set[tuple[str, str]]()
    for place, stage in enumerate(spec.stages):
        try:
            _check_stage(stage, spec, checkpoints, filters)
        except SpecError as error:
            raise SpecError(f"{path} line {_line(tree, ('stages', place))}: {error}") from error
    for name, engine in spec.engines.items():
        try:
            load_step("use", engine.use, engine.options)
        except SpecError as error:
            raise SpecError(f"{path} line {_line(tree, ('engines', name))}: engine {name}: {error}") from error
        target = str(engine.options.get("model", ""))
        if target.startswith("@") and target[1:] not in checkpoints:
            line = _line(tree, ("engines", name))
            raise SpecError(f"{path} line {line}: engine {name}: no train stage makes {target!r}")


def _check_stage(stage: Stage, spec: Spec, checkpoints: set[str], filters: set[tuple[str, str]]) -> None:
    if isinstance(stage, GenerateStage | FilterStage | TrainStage | EvaluateStage):
        step = load_stage_step(stage, spec)
        for value in getattr(step, "models", {}).values():
            if value not in spec.engines:
                raise SpecError(f"no engine {value!r}; {nearest(value, list(spec.engines))}")
        rewards = [r for name in ("reward", "gold") if (r := getattr(step, name, None))]
        engines: tuple[str, ...] = ("engine", "weak", "strong", "rollout", "judge")
        engines += () if isinstance(stage, FilterStage) else ("target",)  # a filter's target is what it looks at
        asked = [getattr(step, option, "") for option in engines]
        models = [judge for judge in getattr(step, "judges", ()) if ":" not in judge]  # the others are rules
        for value in [*asked, models, *(getattr(r, "judges", ()) for r in rewards)]:  # one engine, or several
            for name in [value] if isinstance(value, str) else value:
                if name and name not in spec.engines:
                    raise SpecError(f"no engine {name!r}; {nearest(name, list(spec.engines))}")
        named = [str(getattr(step, option, "")) for option in ("base", "value_model", "ref_model")]
        for base in [*named, *(model for r in rewards for model in getattr(r, "models", ()))]:
            if base.startswith("@") and base[1:] not in checkpoints:
                raise SpecError(f"no earlier train stage makes {base!r}; {nearest(base[1:], list(checkpoints))}")
    if isinstance(stage, FilterStage):
        if (stage.on, stage_name(stage)) in filters:
            raise SpecError(f"{stage.on} is filtered by {stage_name(stage)} twice: give the second one a `name`")
        filters.add((stage.on, stage_name(stage)))
    if isinstance(stage, TrainStage):
        if stage_name(stage) in checkpoints:
            raise SpecError(f"two train stages are called {stage_name(stage)}: give the second one a `name`")
        checkpoints.add(stage_name(stage))


def _line(tree: yaml.Node, loc: Sequence[str | int]) -> int:
    """The line, from 1, of the deepest part of `loc` that the document has."""
    node, line = tree, tree.start_mark.line
    for part in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line, found[0][1]
        else:
            break
    return line + 1
