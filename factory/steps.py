"""The protocols of the steps, and how a name in a spec becomes one: the file name is the registry.

`generate: self_instruct` is class `SelfInstruct` in `generators/self_instruct.py`; nothing else lists it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import ValidationError

from factory.engines.base import Engine
from factory.errors import SpecError, nearest
from factory.memory import Archive, Memory
from factory.records import Answered, Completion, Metric, Prompt, Record, Verdict
from factory.rewards import Judge
from factory.rewards import placed as placed_reward

if TYPE_CHECKING:
    import datasets
    import polars as pl

FOLDERS = {
    "generate": "generators",
    "filter": "filters",
    "train": "trainers",
    "evaluate": "factory.evaluations",
    "use": "factory.engines",
}
_NOT_ENGINES = {"base", "journal", "budget", "checkpoints", "pool"}  # what the engines share


class Generator(Protocol):
    """Makes records from prompts by asking engines."""

    def calls(self, prompts: int) -> int:
        """An estimate of the engine calls that this many prompts cause."""
        ...

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Yield records in an order that depends on the prompts, the replies' content and `rng` alone."""
        ...


@runtime_checkable
class Reviewer(Protocol):
    """A generator that reads answers, not only prompts: it judges, scores or picks what exists."""

    def calls(self, prompts: int) -> int:
        """An estimate of the engine calls that this many prompts cause."""
        ...

    def review(self, answered: Iterable[Answered], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """As `Generator.generate`, of prompts with their kept completions. It yields what it talks about as well, so
        that the dataset which it fills is whole in itself."""
        ...


class Filter(Protocol):
    """Judges records. Nothing is deleted: its verdicts are rows."""

    @property
    def target(self) -> Literal["prompts", "completions", "pairs"]:
        """Which records of a dataset it is given."""
        ...

    def screen(self, frame: "pl.DataFrame") -> "pl.DataFrame":
        """Columns id, text, prompt, language, finish_reason, priority, prompt_id, scores and more in, of pairs chosen
        and rejected (`text` is the chosen one); id, keep, reason, score, threshold, evidence_id out, a row for each
        row, in the same order."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A filter that keeps what it worked out for its next run, or compares with what the store holds already."""

    @property
    def target(self) -> Literal["prompts", "completions", "pairs"]:
        """Which records of a dataset it is given."""
        ...

    def screen_with(self, frame: "pl.DataFrame", memory: Archive) -> "pl.DataFrame":
        """As `Filter.screen`, with a memory. Doing it again with what it remembers gives the same verdicts."""
        ...


@runtime_checkable
class Measuring(Protocol):
    """A filter that also measures what its verdicts did to the dataset as a whole."""

    def measure(self, frame: "pl.DataFrame", keep: "pl.Series", memory: Archive) -> Iterator[Metric]:
        """Metrics of the records that it was shown, before and after; they are stored with the dataset's name."""
        ...


class Trainer(Protocol):
    """Makes a checkpoint from a dataset."""

    @property
    def view(self) -> str:
        """The view of the store that holds its columns, for specs that name a dataset only."""
        ...

    @property
    def base(self) -> str:
        """The checkpoint that it starts from."""
        ...

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Record]:
        """Train and write a checkpoint to `out`; metrics come as they are measured, and verdicts on rows that were left
        out. Goes on from a state that a run which was cut off left beside `out`."""
        ...


Ask = Callable[[Judge, Sequence[tuple[Prompt, Completion]]], list[float | None]]  # a judge's scores, by its engine


@runtime_checkable
class Asking(Protocol):
    """A trainer that learns from rewards of its own answers, of which a judge may be one. Its answers are records."""

    def train_asking(self, data: "datasets.Dataset", out: Path, ask: Ask | None) -> Iterator[Record]:
        """As `Trainer.train`, with engines to ask."""
        ...


@runtime_checkable
class Showing(Protocol):
    """A trainer that shows what it would learn, before any of it is learned."""

    def preview(self, data: "datasets.Dataset") -> Iterator[list[tuple[str, bool]]]:
        """Texts in pieces, each piece with whether it is learned."""
        ...


@runtime_checkable
class Recalling(Protocol):
    """A trainer that keeps what it worked out, such as a reference's log-probabilities, for its next run."""

    def train_with(self, data: "datasets.Dataset", out: Path, memory: Memory) -> Iterator[Metric | Verdict]:
        """As `Trainer.train`, with a memory."""
        ...


class Evaluation(Protocol):
    """Measures models."""

    def evaluate(self, engines: Mapping[str, Engine]) -> Iterator[Record]:
        """Yield metrics, and where it asked something, the prompts, completions and judgements behind them."""
        ...


@dataclass(frozen=True)
class Option:
    """One option of a step, for help and documentation."""

    name: str
    type: str
    default: str
    help: str


def load_step(kind: str, name: str, params: Mapping[str, Any], folder: Path | None = None) -> Any:
    """The step `name` with its options checked. Relative paths in options are taken from `folder`.

    Raises SpecError for an unknown step or option, naming the nearest known one.
    """
    cls = _class(kind, name)
    options = cls.__pydantic_fields__
    for key in params:
        if key not in options:
            raise SpecError(f"{name}: no option {key!r}; {nearest(key, list(options))}")
    placed = {k: _placed(v, str(options[k].annotation), folder) for k, v in params.items()}
    try:
        return cls(**placed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "options"
        said = "is needed" if first["type"] in {"missing", "missing_argument"} else first["msg"].lower()
        raise SpecError(f"{name}: {where} {said} (see `factory steps {name}`)") from error


def step_names(kind: str) -> list[str]:
    """Every step of a kind: the files of its folder that do not begin with an underscore."""
    folder = import_module(FOLDERS[kind])
    found = [m.name for m in iter_modules(folder.__path__) if not m.name.startswith("_")]
    return sorted(set(found) - _NOT_ENGINES) if kind == "use" else sorted(found)


def step_help(kind: str, name: str) -> tuple[str, list[Option]]:
    """A step's first line of documentation and its options."""
    cls = _class(kind, name)
    options = [
        Option(
            key,
            str(info.annotation).replace("typing.", "") if "[" in str(info.annotation) or "|" in str(info.annotation)
            else getattr(info.annotation, "__name__", str(info.annotation)),
            "needed" if info.is_required() else repr(info.get_default(call_default_factory=True)),
            info.description or "",
        )
        for key, info in cls.__pydantic_fields__.items()
    ]  # fmt: skip
    return (cls.__doc__ or "").strip().split("\n")[0], options


def published(generator: str) -> Mapping[str, tuple[float, str]]:
    """The figures that a generator's source publishes, as measure -> (figure, source and setting); none are fine."""
    if generator not in step_names("generate"):
        return {}  # one that was there when the store was filled
    found: Mapping[str, tuple[float, str]] = getattr(import_module(f"generators.{generator}"), "PUBLISHED", {})
    return found


def _class(kind: str, name: str) -> Any:
    known = step_names(kind)
    if name not in known:
        raise SpecError(f"{kind}: no step {name!r}; {nearest(name, known)} (see `factory steps`)")
    module = import_module(f"{FOLDERS[kind]}.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))


def _placed(value: Any, annotation: str, folder: Path | None) -> Any:
    if folder and "Path" in annotation and isinstance(value, str) and not Path(value).is_absolute():
        return folder / value
    return placed_reward(value, folder) if folder and "rewards.Reward" in annotation else value
