"""What scores answers without an engine: rules, reward models, SQL expressions and functions of the user's own.

Each is opened from its part of the notation (`factory.rewards`) and gives a score, or None, for each sample.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from factory.answers import final_answer, same_answer
from factory.errors import DataError, EngineError, SpecError, nearest
from factory.refusals import refuses
from factory.rewards import Judge, Model, Part, Python, Reward, Rule, Sample, Sql
from factory.text import normalise, words

Scorer = Callable[[Sequence[Sample]], list[float | None]]


class Scored(NamedTuple):
    """One sample's reward, and the scores of its parts in their order. None: there is no score."""

    value: float | None
    parts: tuple[float | None, ...]

    def told(self, reward: Reward) -> str:
        """The parts in words, for a judgement's rationale."""
        return ", ".join(
            f"{p.name} {'none' if s is None else f'{s:g}'}" for p, s in zip(reward.parts, self.parts, strict=True)
        )


def opened(part: Part) -> Scorer:
    """The scorer of a part. A model is loaded when it is first asked. Raises SpecError for a judge: it is an engine."""
    match part:
        case Rule():
            return lambda samples: [_RULES[part.rule](part, s) for s in samples]
        case Sql():
            return lambda samples: _by_sql(part.sql, samples)
        case Python():
            return _function(part.python)
        case Model():
            return _RewardModel(part)
        case Judge():
            raise SpecError(f"reward {{judge: {part.judge}}}: a judge is an engine, and none is given here")


def combined(reward: Reward, columns: Sequence[Sequence[float | None]]) -> list[Scored]:
    """The rewards of samples, given each part's scores of all of them."""
    return [Scored(reward.combined(scores), tuple(scores)) for scores in zip(*columns, strict=True)]


# --- rules -----------------------------------------------------------------------------------------------------------


def _lines(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.strip().split("\n"))


def _exact(rule: Rule, sample: Sample) -> float | None:
    return None if sample.gold is None else float(_lines(sample.completion) == _lines(sample.gold))


def _answer(rule: Rule, sample: Sample) -> float | None:
    if sample.gold is None:
        return None
    said, gold = (final_answer(text) or text.strip() for text in (sample.completion, sample.gold))
    return float(same_answer(said, gold))


def _contains(rule: Rule, sample: Sample) -> float | None:
    return None if sample.gold is None else float(normalise(sample.gold) in normalise(sample.completion))


def _regex(rule: Rule, sample: Sample) -> float | None:
    return float(bool(re.search(rule.pattern, sample.completion)))


def _json(rule: Rule, sample: Sample) -> float | None:
    try:
        json.loads(sample.completion)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _length(rule: Rule, sample: Sample) -> float | None:
    count = len(words(sample.completion))
    return -abs(count - rule.words) / rule.words if rule.words else float(count)


def _refusal(rule: Rule, sample: Sample) -> float | None:
    return float(refuses(sample.completion))


_RULES: Mapping[str, Callable[[Rule, Sample], float | None]] = {
    "exact": _exact,  # the right answer, white space aside
    "answer": _answer,  # the same final answer in mathematics
    "contains": _contains,  # the right answer is in it
    "regex": _regex,  # `pattern` is found in it
    "json": _json,  # it is valid JSON
    "length": _length,  # its words; with `words: N`, how far from N it is, as a negative share
    "refusal": _refusal,  # it declines
}

# --- SQL -------------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "prompt": "VARCHAR", "completion": "VARCHAR", "answer": "VARCHAR", "length": "BIGINT", "words": "BIGINT",
    "language": "VARCHAR", "meta": "JSON", "refusal": "BOOLEAN",
}  # fmt: skip
_SANDBOX: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "1GB",
    "threads": "1",
}
_NOT_ROWWISE = {"WINDOW": "a window", "SUBQUERY": "a subquery"}


def check_sql(expression: str) -> None:
    """Raise SpecError for anything but one expression that looks at one answer alone, so that no other changes it."""
    import duckdb

    whole = f"SELECT ({expression}\n) FROM batch"
    with duckdb.connect(":memory:", config=_SANDBOX) as con:
        tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [whole]).fetchall()[0][0])
        try:
            node = tree["statements"][0]["node"]
            alone = len(tree["statements"]) == len(node["select_list"]) == 1 and not any(
                node[k] for k in ("where_clause", "having", "qualify", "sample", "modifiers", "group_expressions")
            )
            alone &= node["from_table"].get("table_name") == "batch"
        except (KeyError, IndexError, TypeError):
            alone = False
        if tree.get("error") or not alone:
            said = str(tree.get("error_message") or "it is more than one expression").split("\n")[0]
            raise SpecError(f"reward sql: {expression!r} is no expression: {said}")
        _refuse_unstable(con, node, expression)
        try:
            _scores(con, expression, [])
        except duckdb.Error as error:
            said = str(error).split("\n")[0]
            raise SpecError(f"reward sql: {expression!r}: {said}; columns are {', '.join(_COLUMNS)}") from error


def _refuse_unstable(con: Any, node: object, expression: str) -> None:
    """A score must be the same whatever else is in the batch, and when it is asked again."""
    sql = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    unstable = {name: f"{name}(), which changes" for (name,) in con.execute(sql).fetchall()}
    for part in _walk(node):
        found = _NOT_ROWWISE.get(str(part.get("class"))) or unstable.get(str(part.get("function_name")))
        if found:
            raise SpecError(f"reward sql: {expression!r} has {found}: use what is known of one answer alone")


def _walk(node: object) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node, *(found for value in node.values() for found in _walk(value))]
    return [found for value in node for found in _walk(value)] if isinstance(node, list) else []


def _by_sql(expression: str, samples: Sequence[Sample]) -> list[float | None]:
    import duckdb

    with duckdb.connect(":memory:", config=_SANDBOX) as con:
        try:
            return _scores(con, expression, samples)
        except duckdb.Error as error:
            raise DataError(f"reward sql: {expression!r}: {str(error).splitlines()[0]}") from error


def _scores(con: Any, expression: str, samples: Sequence[Sample]) -> list[float | None]:
    import pyarrow as pa

    rows = [{**s.columns, "refusal": refuses(s.completion)} for s in samples]
    kinds = {"VARCHAR": pa.string(), "JSON": pa.string(), "BIGINT": pa.int64(), "BOOLEAN": pa.bool_()}
    columns = {name: pa.array([row[name] for row in rows], kinds[kind]) for name, kind in _COLUMNS.items()}
    con.register("given", pa.table({"place": pa.array(range(len(rows)), pa.int64()), **columns}))
    typed = ", ".join(f'"{name}"::{kind} AS "{name}"' for name, kind in _COLUMNS.items())
    con.execute(f"CREATE TABLE batch AS SELECT place, {typed} FROM given")
    # TRY: one answer that cannot be cast has no score, and the others keep theirs
    con.execute("SET lock_configuration = true")
    found = con.execute(f"SELECT TRY(CAST(({expression}\n) AS DOUBLE)) FROM batch ORDER BY place").fetchall()
    return [_number(score) for (score,) in found]


# --- functions of the user's own -------------------------------------------------------------------------------------


def _function(named: str) -> Scorer:
    path, sign, name = named.rpartition(":")
    if not sign or not path.endswith(".py"):
        raise SpecError(f"reward python: {named!r}: write FILE.py:FUNCTION, for example rewards.py:score")
    function = _loaded(Path(path), name)
    takes = set(inspect.signature(function).parameters)

    def score(samples: Sequence[Sample]) -> list[float | None]:
        known = {"answers": [s.gold for s in samples], "metas": [dict(s.meta) for s in samples]}
        more = {key: value for key, value in known.items() if key in takes}
        try:
            given = list(function([s.prompt for s in samples], [s.completion for s in samples], **more))
            scores = [None if value is None else _number(float(value)) for value in given]
        except Exception as error:  # code of the user's own may raise anything
            raise DataError(f"reward python: {named} failed: {type(error).__name__}: {error}") from error
        if len(scores) != len(samples):
            raise DataError(f"reward python: {named} gave {len(scores)} scores for {len(samples)} completions")
        return scores

    return score


def _loaded(path: Path, name: str) -> Callable[..., Any]:
    from importlib.util import module_from_spec, spec_from_file_location

    if not path.is_file():
        raise SpecError(f"reward python: no file {path}")
    spec = spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"  # noqa: PT018
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SpecError(f"reward python: {path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SpecError(f"reward python: {path} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# --- reward models ---------------------------------------------------------------------------------------------------


class _RewardModel:
    """A checkpoint of step `reward` or `process_reward`. The text is what trainers render: all turns, with the end of
    the last; or, for a model of steps, the answer line by line.

    Where the checkpoint's configuration holds the scale of its rewards (`reward_scale`, see trainers/reward.py), scores
    have mean 0 and deviation 1, and several heads are one number: the mean of an ensemble, and of all dimensions.
    """

    def __init__(self, part: Model) -> None:
        self.part = part
        self.loaded: tuple[Any, Any, str] | None = None
        self.spreads: list[float] = []  # of what was scored last: how far an ensemble's heads are apart

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        self.loaded = self.loaded or _load(self.part.model)
        model, tokenizer, device = self.loaded
        if hasattr(model.config, "reduce_steps"):
            return [_number(round(_stepwise(s, model, tokenizer, device, self.part.max_length), 6)) for s in samples]
        coded = tokenizer([_text(s, tokenizer) for s in samples], add_special_tokens=False)["input_ids"]
        ids = [row[-self.part.max_length :] for row in coded]  # the answer's end is what counts
        scores, spreads = list[float | None]([None] * len(samples)), [0.0] * len(samples)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
        for start in range(0, len(order), self.part.batch_size):
            batch = order[start : start + self.part.batch_size]
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt", padding_side="right")
            for i, (score, spread) in zip(batch, _heads(model, padded, device, self.part), strict=True):
                scores[i], spreads[i] = _number(round(score, 6)), spread
        ensemble = int((getattr(model.config, "reward_scale", None) or {}).get("ensemble", 1)) > 1
        self.spreads = spreads if ensemble else []
        return scores


def _heads(model: Any, padded: Mapping[str, Any], device: str, part: Model) -> list[tuple[float, float]]:
    """Of all heads, which are laid out dimension by dimension, one number for each text, and how far they are apart."""
    import torch

    scale = getattr(model.config, "reward_scale", None) or {"mean": [0.0], "std": [1.0], "ensemble": 1}
    with torch.inference_mode():
        logits = _logits(model, {key: value.to(device) for key, value in padded.items()}).float().cpu()
    heads = logits.reshape(len(logits), -1, int(scale["ensemble"]))  # (texts, dimensions, members)
    heads = (heads - torch.tensor(scale["mean"])[:, None]) / torch.tensor(scale["std"])[:, None]
    named, wanted = list(scale.get("dimensions") or []), part.dimension
    if wanted and wanted not in named:
        raise SpecError(f"reward model: no dimension {wanted!r}; {nearest(wanted, named)}")
    heads = heads[:, [named.index(wanted)]] if wanted else heads
    apart = heads.std(-1, correction=0)
    each = {"mean": heads.mean(-1), "min": heads.amin(-1), "lower": heads.mean(-1) - part.k * apart}[part.ensemble]
    return list(zip(each.mean(-1).tolist(), apart.mean(-1).tolist(), strict=True))


def _logits(model: Any, padded: Mapping[str, Any]) -> Any:
    """The heads' scores of each text. Our trainers read them at its last token; transformers goes back to the last one
    that is no padding, which is another where a tokenizer has one token for the end and for padding."""
    import torch

    if not getattr(model.config, "reward_scale", None):
        return model(**padded).logits
    hidden, ends = getattr(model, model.base_model_prefix)(**padded)[0], padded["attention_mask"].sum(1) - 1
    return model.score(hidden[torch.arange(len(ends), device=ends.device), ends])


def _stepwise(sample: Sample, model: Any, tokenizer: Any, device: str, max_length: int) -> float:
    """The least, or the product, of the scores behind an answer's lines; each is the chance that its step is right."""
    import torch

    text, marks = _opening(sample, tokenizer), list[int]()
    for line in filter(str.strip, sample.completion.split("\n")):
        text += f"{line}\n"
        marks.append(len(text) - 1)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
    starts, ids = coded["offset_mapping"][0, -max_length:, 0].contiguous(), coded["input_ids"][:, -max_length:]
    with torch.inference_mode():
        shares = model(input_ids=ids.to(device)).logits[0, :, 0].float().cpu().sigmoid()
    places = torch.searchsorted(starts, torch.tensor(marks), right=True) - 1  # the tokens that hold the line breaks
    found = shares[places[places >= 0]]
    if not len(found):
        return 0.0  # nothing was said
    return float(found.prod() if model.config.reduce_steps == "product" else found.min())


def _opening(sample: Sample, tokenizer: Any) -> str:
    turns = [{"role": m.role, "content": m.content} for m in sample.messages]
    if tokenizer.chat_template is None:
        return "\n".join(t["content"] for t in turns) + "\n"
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _load(name: str) -> tuple[Any, Any, str]:
    import torch
    import transformers
    from transformers.utils import logging

    from factory.engines.checkpoints import resolve

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(name))
        stepwise = hasattr(transformers.AutoConfig.from_pretrained(resolve(name)), "reduce_steps")
        kind = f"AutoModelFor{'Token' if stepwise else 'Sequence'}Classification"
        reader = getattr(transformers, kind).from_pretrained
        model, told = reader(resolve(name), use_safetensors=True, output_loading_info=True)
        model = model.to(device).eval()
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load reward model {name!r}: {str(error).strip().splitlines()[0]}") from error
    if holes := sorted(map(str, [*told.get("missing_keys", ()), *told.get("mismatched_keys", ())])):
        raise EngineError(f"{name!r} lacks weights ({', '.join(holes[:2])}), which would be drawn at random: it is no "
                          "reward model, or a damaged copy of one")  # fmt: skip
    if model.config.num_labels != 1 and not getattr(model.config, "reward_scale", None):
        raise EngineError(f"{name!r} has {model.config.num_labels} labels and no reward_scale: it is no reward model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, device


def _text(sample: Sample, tokenizer: Any) -> str:
    turns = [{"role": m.role, "content": m.content} for m in sample.messages]
    if tokenizer.chat_template is None:
        return "\n".join(t["content"] for t in turns) + f"\n{sample.completion}{tokenizer.eos_token}"
    text = str(
        tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": sample.completion}], tokenize=False)
    )
    behind = text.rfind(sample.completion.strip()) + len(sample.completion.strip())
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | {str(tokenizer.eos_token)}
    ends = [place + len(token) for token in special if (place := text.find(token, behind)) >= 0]
    return text[: min(ends)] if ends else text + str(tokenizer.eos_token)
