"""The prompts that a policy is asked, read from rows; and its answers, with all that was measured, as rows again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from factory.errors import DataError
from factory.records import Completion, Judgement, Message, Prompt, Record, Verdict, content_id
from factory.rewards import Python, Reward
from factory.text import language
from trainers._chat import before_answer, turns
from trainers._lessons import Rolled
from trainers._rewarding import Answer, Rated
from trainers._rollouts import Asked, Rollout
from trainers._rows import Row, key_of, needs, prompt_of, told_of

_EXAMPLE = "SELECT question AS prompt, answer ..."
_EDGE = 1 << 20  # bytes read at each end of a file


class Prompts(NamedTuple):
    """What is asked, the verdicts on rows that were left out, and a hash of all of it."""

    asked: list[Asked]
    skipped: list[Verdict]
    digest: str


def prompts(data: Any, tokenizer: Any, room: int, trainer: str) -> Prompts:
    """The prompts of rows, those that leave `room` tokens at most. Raises DataError where none is left."""
    needs(data.column_names, [("prompt", "messages")], trainer, _EXAMPLE)
    found, skipped, digest = list[Asked](), list[Verdict](), blake2b(digest_size=16)
    for number, row in enumerate(data, 1):
        with told_of(f"row {number}"):
            prompt = _prompt(row, f"row {number}")
            text = before_answer(turns(prompt_of(row)), tokenizer, f"row {number}")
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        if len(ids) > room or not prompt.text.strip():
            reason = "too_long" if len(ids) > room else "empty_prompt"
            skipped.append(_left_out(trainer, prompt, key_of(row), reason))
            continue
        found.append(Asked(ids, prompt, key_of(row) or str(number)))
        digest.update(ids.tobytes() + json.dumps(dict(prompt.meta), sort_keys=True, default=str).encode())
    if not found:
        reasons = ", ".join(sorted({v.reason for v in skipped})) or "there are none"
        raise DataError(f"{trainer}: no prompt leaves room for an answer ({reasons}): raise max_length or lower "
                        "max_completion_length")  # fmt: skip
    return Prompts(found, skipped, digest.hexdigest())


def judged_by(options: Any) -> str:
    """A hash of the files that rewards and models are read from: a state is gone on from only with the same ones.

    Of each file its size and its first and last megabyte count, where a change of weights or code shows.
    """
    rewards = [reward for reward in (options.reward, options.gold) if reward]
    named = [m for r in rewards for m in r.models] + [
        p.python.rpartition(":")[0] for r in rewards for p in r.parts if isinstance(p, Python)
    ]
    digest = blake2b(digest_size=16)
    for place in filter(None, (*named, options.ref_model, getattr(options, "value_model", ""))):
        folder = Path(place).expanduser()
        files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        for path in (f for f in files if f.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(_EDGE))
                file.seek(max(0, path.stat().st_size - _EDGE))
                digest.update(file.read(_EDGE))
    return digest.hexdigest()


def _prompt(row: Row, where: str) -> Prompt:
    """The prompt as a record: its meta holds the right answer, if one is known, for the rules that need it."""
    if not prompt_of(row):
        raise DataError(f"{where}: the prompt is empty: filter such rows")
    messages = tuple(Message(t["role"], t["content"]) for t in turns(prompt_of(row)))
    meta = row.get("meta") or {}
    meta = dict(json.loads(meta) if isinstance(meta, str) else meta)
    meta |= {name: row[name] for name in ("answer", "output", "category") if row.get(name) is not None}
    spoken = str(row.get("language") or "") or language(messages[-1].content)
    return Prompt(messages, str(row.get("generator") or ""), tuple(row.get("parents") or ()), spoken, meta)


def _left_out(trainer: str, prompt: Prompt, key: str, reason: str) -> Verdict:
    name = content_id("skipped", trainer, key, prompt.id)
    return Verdict(name, trainer, False, reason, text=prompt.text[:2000], evidence_id=key)


def answers(rollouts: Sequence[Rollout], policy: str, temperature: float, limit: int) -> list[Answer]:
    """The rollouts as completions of a policy; no engine was called for them."""
    drawn: Mapping[str, Any] = {"temperature": temperature, "max_tokens": limit}
    return [
        Answer(r.asked.prompt, Completion(
            r.asked.prompt.id, r.text, policy, "", drawn, r.seed, "stop" if r.ended else "length", len(r.ids),
        ), r.asked.key)
        for r in rollouts
    ]  # fmt: skip


def filed(found: Rolled, told: Sequence[Answer], trainer: str, reward: Reward, gold: Reward | None) -> Iterator[Record]:
    """Prompts, answers, and for each answer its reward as an opinion, its gold reward and its KL as measures."""
    kls = found.kl.sum(1).tolist()
    for place, (each, answer) in enumerate(zip(found.of, told, strict=True)):
        prompt, completion = answer.prompt, answer.completion
        if place % found.size == 0:
            yield prompt
        yield completion
        if not completion.text:  # it was learned from, but is no row for others
            yield Verdict(completion.id, trainer, False, "empty_answer", score=each.rated.value)
        yield Judgement(prompt.id, completion.id, reward.name, reward.kind, rubric=trainer, aspect="reward",
                        score=each.rated.value, rationale=each.rated.told)  # fmt: skip
        measures = [("policy", "kl", kls[place])] + (
            [(gold.name, "gold", each.gold)] if gold and each.gold is not None else []
        )
        for judge, aspect, score in measures:
            yield Judgement(prompt.id, completion.id, judge, "measure", rubric=trainer, aspect=aspect, score=score)


Gap = tuple[Answer, Rated | None]  # an answer of a group that is left out, as a judge was silent on one of it


def left_out(gaps: Sequence[Gap], trainer: str, reward: Reward, all_rows: bool) -> Iterator[Record]:
    """The verdicts on answers that are not learned from; and, where `all_rows`, the answers with their scores."""
    for answer, rated in gaps:
        prompt, completion = answer.prompt, answer.completion
        if all_rows:
            yield from (prompt, completion)
        if all_rows and rated:
            yield Judgement(prompt.id, completion.id, reward.name, reward.kind, rubric=trainer, aspect="reward",
                            score=rated.value, rationale=rated.told)  # fmt: skip
        yield Verdict(completion.id, trainer, False, "group_left_out" if rated else "judge_no_score",
                      score=rated.value if rated else None, text=completion.text, evidence_id=prompt.id)  # fmt: skip


def category(prompt: Prompt) -> str:
    """What the prompt is grouped by: its category, else who made it."""
    return str(prompt.meta.get("category") or prompt.generator)
