"""The shapes that dataset rows come in, each with the function that makes records of a row.

Sources: the dataset formats pages of TRL, the data README of LLaMA-Factory, the files of Alpaca, ShareGPT, HH-RLHF,
Self-Instruct, Dolly, GSM8K, MT-Bench and HarmBench. Departures: a conversation becomes one prompt (all turns but the
last) and one completion; an implicit prompt is the common beginning in whole turns, never in characters; columns that
a shape does not use are kept in `Prompt.meta`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from factory.errors import DataError, nearest
from factory.formats.parts import (
    OUR_OWN,
    Records,
    Row,
    Tongue,
    Unfit,
    answered,
    asked,
    completion,
    meta_of,
    one_answer,
    preferred,
    spoken,
    text_of,
    turns_of,
    with_system,
)
from factory.records import Completion, Judgement, Message, Outcome, Prompt, Record


@dataclass(frozen=True)
class Shape:
    """A row shape: its name, the columns that it cannot do without, and the function from a row to its records."""

    name: str
    columns: frozenset[str]
    parse: Callable[[Row, Tongue], Records]


def choose(name: str, columns: Sequence[str], where: str) -> Shape:
    """The shape of that name, or for "auto" the first that finds its columns. Raises DataError for none."""
    if name == "auto":
        for shape in SHAPES:
            if shape.columns.issubset(columns):
                return shape
        raise DataError(
            f"{where}: columns {_listed(columns)} fit no known shape; rename them to fit one of: "
            + ", ".join(f"{shape.name} ({_listed(sorted(shape.columns))})" for shape in SHAPES)
        )
    shape = named(name)
    if missing := shape.columns.difference(columns):
        raise DataError(
            f"{where}: shape {name!r} needs column {_listed(sorted(missing))}, found {_listed(columns)}; "
            "rename the columns or import with shape auto"
        )
    return shape


def named(name: str) -> Shape:
    """The shape of that name. Raises DataError for an unknown one."""
    known = {shape.name: shape for shape in SHAPES}
    if name not in known:
        raise DataError(f"unknown shape {name!r}; {nearest(name, ['auto', *known])}")
    return known[name]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names)) or "none"


# --- one turn in plain columns ---------------------------------------------------------------------------------------


def _single(row: Row, tongue: Tongue, column: str, used: frozenset[str]) -> Prompt:
    text = text_of(row[column])
    if not text.strip():
        raise Unfit("empty_prompt")
    messages = (Message("user", text),)
    return Prompt(messages, "import", (), tongue(row, text), meta_of(row, used))


def _asked_only(row: Row, tongue: Tongue, column: str, used: frozenset[str]) -> Records:
    if isinstance(row[column], str) and not row.get("system"):
        return (_single(row, tongue, column, used),)
    return (_prompt(turns_of(row[column]), row, tongue, used),)


def _asked_and_answered(row: Row, tongue: Tongue, column: str, answer: str, used: frozenset[str]) -> Records:
    return answered(_single(row, tongue, column, used), row, text_of(row[answer]))


def _instructed(row: Row, tongue: Tongue, given: str, used: frozenset[str]) -> Prompt:
    """The prompt of an Alpaca row. The two columns stay in meta, so that an export can part them again."""
    instruction, context = text_of(row["instruction"]), text_of(row.get(given))
    text = f"{instruction}\n{context}" if instruction and context else instruction or context
    if not text.strip():
        raise Unfit("empty_prompt")
    meta = meta_of(row, used)
    if context:
        meta = {**meta, "instruction": instruction, "input": context}
    messages: tuple[Message, ...] = (Message("user", text),)
    if row.get("history") or row.get("system"):
        messages = asked(with_system(row, (*_history(row.get("history")), *messages)))
    return Prompt(messages, "import", (), tongue(row, text), meta)


def _history(rounds: object) -> tuple[Message, ...]:
    if not rounds:
        return ()
    if not isinstance(rounds, list) or any(not isinstance(r, list | tuple) or len(r) != 2 for r in rounds):
        raise Unfit("bad_roles")
    return tuple(
        Message(role, text_of(said)) for r in rounds for role, said in zip(("user", "assistant"), r, strict=True)
    )


def _alpaca(row: Row, tongue: Tongue, answer: str, given: str, used: frozenset[str]) -> Records:
    return answered(_instructed(row, tongue, given, used), row, text_of(row[answer]))


def _alpaca_prompt(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    return (_instructed(row, tongue, "input", used),)


def _alpaca_pair(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    prompt = _instructed(row, tongue, "input", used)
    return preferred(prompt, text_of(row["chosen"]), text_of(row["rejected"]))


def _self_instruct(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """A seed task: as many prompts as it has instances. An instance without an output is a prompt alone."""
    instances = row["instances"] or [{}]
    if not isinstance(instances, list) or not all(isinstance(instance, Mapping) for instance in instances):
        raise Unfit("not_an_object")
    records: list[Record] = []
    rest = {key: value for key, value in row.items() if key != "instances"}
    for instance in instances:
        prompt = _instructed({**rest, "input": instance.get("input")}, tongue, "input", used)
        output = text_of(instance.get("output"))
        records += [prompt, completion(prompt, row, output)] if output.strip() else [prompt]
    return tuple(records)


# --- conversations ---------------------------------------------------------------------------------------------------


def _prompt(messages: tuple[Message, ...], row: Row, tongue: Tongue, used: frozenset[str]) -> Prompt:
    messages = asked(with_system(row, messages) if messages else messages)
    return Prompt(messages, "import", (), tongue(row, messages[-1].content), meta_of(row, used))


def _conversation(row: Row, tongue: Tongue, column: str, used: frozenset[str]) -> Records:
    """A conversation that ends with an answer, or with a user turn that waits for one."""
    messages = turns_of(row[column])
    if not messages or messages[-1].role != "assistant":
        return (_prompt(messages, row, tongue, used),)
    return answered(_prompt(messages[:-1], row, tongue, used), row, messages[-1].content)


def _prompt_turns(row: Row) -> tuple[Message, ...]:
    """The turns before the answer: `messages` where it holds just those, as our own exports do, else `prompt`."""
    messages = turns_of(row["messages"]) if row.get("messages") else ()
    return messages if messages and messages[-1].role == "user" else turns_of(row["prompt"])


def _completed(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    prompt = _prompt(_prompt_turns(row), row, tongue, used)
    return answered(prompt, row, one_answer(turns_of(row["completion"] or "", "assistant")))


def _labelled(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """An unpaired preference: the label is the data set's score of the one completion, 1 or 0."""
    label = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}.get(str(row["label"]).lower())
    if label is None:
        raise Unfit("bad_label")
    prompt, completion = _completed(row, tongue, used)
    assert isinstance(completion, Completion)
    opinion = Judgement(completion.prompt_id, completion.id, "dataset", "human", score=label)
    return prompt, completion, opinion


def _pair(row: Row, tongue: Tongue, start: Callable[[Row], tuple[Message, ...]], used: frozenset[str]) -> Records:
    """A preference. Each side is an answer to the prompt, or a whole conversation that begins with it."""
    before = start(row)
    sides = [_side(row[column], before) for column in ("chosen", "rejected")]
    if sides[0] == sides[1]:
        raise Unfit("same_sides")
    shared = 0
    while shared < min(map(len, sides)) and sides[0][shared] == sides[1][shared]:
        shared += 1
    if max(map(len, sides)) > shared + 1:
        raise Unfit("prompts_differ")
    prompt = _prompt(sides[0][:shared], row, tongue, used)
    return preferred(prompt, one_answer(sides[0][shared:]), one_answer(sides[1][shared:]))


def _side(value: object, before: tuple[Message, ...]) -> tuple[Message, ...]:
    if isinstance(value, str) and not before:
        return spoken(value)
    said = turns_of(value if value is not None else "", "assistant")
    return said if said and said[0].role != "assistant" else before + said


def _turns_prompt(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """MT-Bench: the first question, for the second needs the answer to it. All stay in meta."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise Unfit("empty_prompt")
    return (_prompt(turns_of(turns[0]), row, tongue, used - {"turns"}),)


# --- benchmarks -----------------------------------------------------------------------------------------------------


def _behaviour(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """HarmBench: a request, behind the context that it speaks of where there is one."""
    text, context = text_of(row["Behavior"]), text_of(row.get("ContextString"))
    text = f"{context}\n\n---\n\n{text}" if context and text else text
    return (_single({**row, "Behavior": text}, tongue, "Behavior", used),)


def _annotated(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """PandaLM: two models' answers and the votes of three people, 1 or 2 for the better one and 0 for a tie."""
    prompt = _instructed(row, tongue, "input", used)
    names = [*text_of(row.get("cmp_key")).split("_"), "", ""]
    one, two = (completion(prompt, {"model": names[i]}, text_of(row[f"response{i + 1}"])) for i in (0, 1))
    votes: dict[str, Outcome] = {"1": "win", "2": "lose", "0": "tie"}
    who = [f"annotator{i}" for i in (1, 2, 3) if row.get(f"annotator{i}") is not None]
    opinions = [
        Judgement(prompt.id, one.id, w, "human", two.id, verdict=votes.get(str(row[w]), "invalid")) for w in who
    ]
    return prompt, one, two, *opinions


def _objective(row: Row, tongue: Tongue, used: frozenset[str]) -> Records:
    """JudgeBench: two answers of one model, of which one is right; and a model's stored verdicts in both orders."""
    prompt = _single(row, tongue, "question", used)
    model = {"model": row.get("response_model")}
    a, b = (completion(prompt, model, text_of(row[f"response_{side}"])) for side in "AB")
    truth = Judgement(prompt.id, a.id, "dataset", "rule", b.id, verdict=_outcome(row["label"]))
    games = row.get("judgments") or []
    if not isinstance(games, list):
        raise Unfit("not_an_object", prompt, a, b, truth)
    return prompt, a, b, truth, *(_game(game, x, y) for game, (x, y) in zip(games, ((a, b), (b, a)), strict=False))


def _game(game: object, first: Completion, second: Completion) -> Judgement:
    """What a judge made of two answers in the order shown; its own first is always called A."""
    told = game.get("judgment") if isinstance(game, Mapping) else None
    if not isinstance(game, Mapping) or not isinstance(told, Mapping):
        raise Unfit("not_an_object")
    opinion = Judgement(first.prompt_id, first.id, text_of(told["judge_model"]), "model", second.id)
    verdict, why = _outcome(game["decision"]), text_of(told.get("response"))
    return replace(opinion, shown_first=first.id, verdict=verdict, rationale=why)


def _outcome(label: object) -> Outcome:
    outcomes: dict[str, Outcome] = {"A>B": "win", "B>A": "lose", "A=B": "tie"}
    return outcomes.get(str(label), "invalid")


# --- the table -------------------------------------------------------------------------------------------------------


def _shape(name: str, columns: str, parse: Callable[..., Records], also: str = "", **kwargs: Any) -> Shape:
    """A shape whose `columns` are needed and used; those in `also` are used where they are there."""
    needed = frozenset(columns.split())
    return Shape(name, needed, partial(parse, used=needed | OUR_OWN | frozenset(also.split()), **kwargs))


def _from(column: str) -> Callable[[Row], tuple[Message, ...]]:
    return lambda row: turns_of(row[column])


_ALPACA = "input system history"
SHAPES: tuple[Shape, ...] = (  # the most telling columns first: the first that fits is taken
    _shape("sharegpt-pairs", "conversations chosen rejected", _pair, "system", start=_from("conversations")),
    _shape("sharegpt", "conversations", _conversation, "system model", column="conversations"),
    _shape("alpaca-pairs", "instruction chosen rejected", _alpaca_pair, _ALPACA),
    _shape("pandalm", "instruction response1 response2", _annotated, "input cmp_key annotator1 annotator2 annotator3"),
    _shape("alpaca", "instruction output", _alpaca, f"{_ALPACA} model", answer="output", given="input"),
    _shape("self-instruct", "instruction instances", _self_instruct, f"{_ALPACA} model"),
    _shape("dolly", "instruction response", _alpaca, "context system model", answer="response", given="context"),
    _shape("pairs", "prompt chosen rejected", _pair, "messages system", start=_prompt_turns),
    _shape("messages-pairs", "messages chosen rejected", _pair, "system", start=_from("messages")),
    _shape("implicit-pairs", "chosen rejected", _pair, "system", start=lambda row: ()),
    _shape("labelled", "prompt completion label", _labelled, "messages system model"),
    _shape("completions", "prompt completion", _completed, "messages system model"),
    _shape("messages", "messages", _conversation, "prompt system model", column="messages"),
    _shape("judgebench", "question response_A response_B label", _objective, "response_model judgments"),
    _shape("question-answer", "question answer", _asked_and_answered, "model", column="question", answer="answer"),
    _shape("responses", "prompt response", _asked_and_answered, "model", column="prompt", answer="response"),
    _shape("prompts", "prompt", _asked_only, "system", column="prompt"),
    _shape("instructions", "instruction", _alpaca_prompt, _ALPACA),
    _shape("questions", "question", _asked_only, column="question"),
    _shape("behaviours", "Behavior", _behaviour, "ContextString"),
    _shape("turns", "turns", _turns_prompt),
)
