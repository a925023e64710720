"""Best-of-n and statistical rejection sampling: many samples of each prompt, of which a reward keeps the good ones.

Sources: best-of-n as in Nakano et al. 2021 (WebGPT), with the bound on its KL divergence from Beirami et al. 2024,
log n - (n - 1) / n; Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization" (RSO), algorithm
1 and appendix A.1: of 64 samples at temperature 0.7 and top_k 40 accept y with probability exp((r(y) - r_max) / beta),
beta 0.5, until 8 are kept; r_max is that of the samples which are left. Pairs are made of the kept ones by their
rewards: neighbours of a random order (first-round), or a knock-out (tournament). Departures:

1. Repeats stay candidates, so that the kept samples follow the optimal policy's shares. RSO's code keys candidates by
   text: little changes where all 64 differ, but everything is accepted where a model says only a few things.
2. The search ends when no sample is left; RSO's code would not end with fewer than it should keep.
3. Any reward in the notation of `factory.rewards`, pointwise; RSO's compares each sample with one of the SFT model.
4. Equal rewards make a tie, never a pair, and neither does equal text.

Every sample is a row: its reward is a judgement, and what was not kept has a verdict with its reward and reason.
"""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal, NamedTuple

from pydantic import Field

from factory.engines.base import Engine, Request, Sampling, in_order
from factory.options import step
from factory.records import Completion, Judgement, Outcome, Prompt, Record, Verdict
from factory.rewards import Judge, RewardOption
from factory.text import words
from generators._candidates import casualty, fault, seed, waves
from generators._rewards import Rated, Rewarder, of_copy, unrated
from generators._tally import Tally

PUBLISHED: Mapping[str, tuple[float, str]] = MappingProxyType({
    "accept_rate": (0.125, "Liu et al. 2023: 8 kept of 64 samples"),
    "kl_bound": (math.log(64) - 63 / 64, "Beirami et al. 2024: best of 64, log n - (n - 1) / n nats"),
    "autosxs_rso": (71.86, "Liu et al. 2023, TL;DR: rso-8 against the SFT target, AutoSxS (DPO 67.72)"),
    "autosxs_tournament": (71.08, "Liu et al. 2023, TL;DR: 64 samples, tournament ranking, AutoSxS"),
})  # fmt: skip
_MEASURES = ("prompts", "sampled", "whole", "rated", "kept")
_PAIRS = {"best": "best_worst", "rso": "first_round"}


@step
class BestOf:
    """Samples many answers of each prompt and keeps the best by a reward, or samples of the policy that it makes."""

    engine: str
    """The engine that answers."""
    reward: RewardOption
    """What is good: {rule: exact}, {model: DIR}, {judge: ENGINE}, {sql: "..."}, {python: "f.py:score"}, or a list."""
    method: Literal["best", "rso"] = "best"
    """`best` keeps those with the highest reward; `rso` accepts by exp((r - r_max) / beta)."""
    n: int = Field(default=64, ge=1)
    """Samples of each prompt."""
    keep: int | None = Field(default=None, ge=1)
    """How many are kept at most: 1 by `best`, 8 by `rso`."""
    beta: float = Field(default=0.5, gt=0)
    """RSO's temperature of the reward: towards 0 it is best-of-n, large values accept everything."""
    pairs: Literal["best_worst", "first_round", "tournament", "none"] | None = None
    """Pairs: the best kept with the worst of all, neighbours of the kept in a random order, or a knock-out of them.
    By default best_worst for `best` and first_round for `rso`."""
    templates: Path | None = None
    """A folder with a judge's templates of your own: judge/pointwise.jinja, judge/pairwise.jinja."""
    wave: int = Field(default=256, ge=1)
    """Prompts that go through each step together."""
    sampling: Sampling = Sampling(temperature=0.7, top_k=40, max_tokens=512)
    """How answers are drawn."""

    def calls(self, prompts: int) -> int:
        """The samples, and what judges are asked of them where no two are alike; a judge's own answer counts once."""
        judges = [p for p in self.reward.parts if isinstance(p, Judge)]
        judged = (2 * (self.n - 1) if j.way == "tournament" else self.n * len(j.aspects) for j in judges)
        own = {(p.judge, p.max_tokens) for p in judges if p.reference}
        return prompts * (self.n + sum(judged) + len(own))

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Each prompt with its samples, their rewards, what became of them and the pairs, in order."""
        salt = rng.getrandbits(48)
        work = _Work(self, engines, salt, Rewarder("best_of", self.reward, engines, self.templates, salt))
        for wave in waves(prompts, self.wave):
            # 1. Sample. 2. Reward each text once. 3. Choose, and pair.
            sampled = yield from work.sampled(wave)
            for prompt, samples in work.rated(sampled):
                yield from work.chosen(prompt, samples)
        yield from work.tally.metrics()


class _Sample(NamedTuple):
    """A completion with its reward."""

    completion: Completion
    rated: Rated

    @property
    def reward(self) -> float:
        assert self.rated.value is not None, "only what was rated is chosen from"
        return self.rated.value


Sampled = list[tuple[Prompt, list[Completion]]]


@dataclass
class _Work:
    """One run: its options, its reward, the salt of its seeds, and its counts."""

    options: BestOf
    engines: Mapping[str, Engine]
    salt: int
    rewarder: Rewarder
    tally: Tally = field(default_factory=lambda: Tally("best_of", _MEASURES))

    def sampled(self, prompts: list[Prompt]) -> Generator[Record, None, Sampled]:
        """n answers of each prompt with seeds of their own. A failed one, or one that was cut, is no candidate."""
        options, engine, n = self.options, self.engines[self.options.engine], self.options.n
        found: Sampled = [(prompt, []) for prompt in prompts]
        drawn = asdict(options.sampling)  # one for all rows: copying it for each costs more than all else here
        requests = (Request(p.messages, options.sampling, seed(self.salt, p.id, i)) for p in prompts for i in range(n))
        for place, reply in enumerate(in_order(engine, requests)):
            prompt, completions = found[place // n]
            if reason := fault(reply):
                yield casualty("best_of", reply, reason, evidence=prompt.id)
                continue
            completions.append(Completion(
                prompt.id, reply.text.strip(), engine.model, options.engine, drawn,
                reply.request.seed, reply.finish_reason, reply.completion_tokens, call_key=reply.key,
            ))  # fmt: skip
        self.tally.count["prompts"] += len(prompts)
        self.tally.count["sampled"] += n * len(prompts)
        self.tally.count["whole"] += sum(len(completions) for _, completions in found)
        return found

    def rated(self, sampled: Sampled) -> Iterator[tuple[Prompt, list[_Sample]]]:
        """All samples with their rewards. The same text has the same reward, and is asked about once."""
        groups = [(p, list({c.text: c for c in reversed(completions)}.values())[::-1]) for p, completions in sampled]
        for (prompt, completions), (_, texts), rated in zip(sampled, groups, self.rewarder.rate(groups), strict=True):
            by_text = {c.text: r for c, r in zip(texts, rated, strict=True)}
            yield prompt, [_Sample(c, of_copy(by_text[c.text], c)) for c in completions]
            if completions:
                self.tally.note("distinct_share", len(texts) / len(completions))

    def chosen(self, prompt: Prompt, samples: list[_Sample]) -> Iterator[Record]:
        """The rows of one prompt."""
        yield prompt
        for sample in samples:
            yield sample.completion
            yield from sample.rated.opinions
            if sample.rated.value is None:
                yield unrated("best_of", sample.completion, sample.rated)
        yield from self.rewarder.taken(prompt.id)
        candidates = [s for s in samples if s.rated.value is not None]
        if not candidates:
            return
        rng = Random(f"{self.salt} choice {prompt.id}")
        kept = self._kept(candidates, rng)
        self._count(candidates, kept)
        yield from _verdicts(candidates, kept, "not_best" if self.options.method == "best" else "not_accepted")
        for winner, loser in self._matches(candidates, kept, rng):
            yield self._pair(prompt, winner, loser)

    def _kept(self, candidates: list[_Sample], rng: Random) -> list[_Sample]:
        scores = [c.reward for c in candidates]
        if self.options.method == "rso":
            return [candidates[i] for i in accepted(scores, self.options.keep or 8, self.options.beta, rng)]
        return [candidates[i] for i in best(scores, self.options.keep or 1)]

    def _matches(self, candidates: list[_Sample], kept: list[_Sample], rng: Random) -> list[tuple[_Sample, _Sample]]:
        how = self.options.pairs or _PAIRS[self.options.method]
        if how == "best_worst":
            one, other = max(kept, key=_reward), min(candidates, key=_reward)
            return [(one, other)] if one.reward > other.reward else []
        order = list(kept)
        rng.shuffle(order)
        return {"first_round": first_round, "tournament": tournament}[how](order) if how != "none" else []

    def _pair(self, prompt: Prompt, one: _Sample, other: _Sample) -> Judgement:
        """A pair as an opinion of the reward: a win, or a tie of equal rewards or equal texts."""
        same = one.reward == other.reward or one.completion.text == other.completion.text
        verdict: Outcome = "tie" if same else "win"
        self.tally.note("tied_pairs", same)
        reward = self.options.reward
        return Judgement(
            prompt.id, one.completion.id, reward.name, reward.kind, other.completion.id, rubric="best_of",
            verdict=verdict, rationale=f"reward {one.reward:g} beside {other.reward:g}",
        )  # fmt: skip

    def _count(self, candidates: list[_Sample], kept: list[_Sample]) -> None:
        scores, number = [c.reward for c in candidates], len(candidates)
        self.tally.count["rated"] += number
        self.tally.count["kept"] += len(kept)
        self.tally.note("accept_rate", len(kept) / number)
        self.tally.note("reward_mean", math.fsum(scores) / number)
        self.tally.note("reward_kept", math.fsum(k.reward for k in kept) / len(kept))
        self.tally.note("words_ratio", _words(kept) / (_words(candidates) or 1))
        if self.options.method == "best":
            self.tally.note("kl_bound", math.log(number) - (number - 1) / number)
        else:
            self.tally.note("kl_estimate", tilted_kl(scores, self.options.beta))


def best(scores: Sequence[float], keep: int) -> list[int]:
    """The places of the highest scores, the first come of equals."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]


def accepted(scores: Sequence[float], keep: int, beta: float, rng: Random) -> list[int]:
    """Algorithm 1 of RSO: passes over the samples that are left, each accepted by exp((r - r_max) / beta)."""
    left, found = list(range(len(scores))), list[int]()
    while left and len(found) < keep:
        highest = max(scores[i] for i in left)
        for i in list(left):
            if rng.random() < math.exp((scores[i] - highest) / beta):
                found.append(i)
                left.remove(i)
                if len(found) == keep:
                    break
    return found


def tilted_kl(scores: Sequence[float], beta: float) -> float:
    """KL divergence, in nats, of the policy that exp(r / beta) makes of the samples, estimated from their weights."""
    highest = max(scores)
    weights = [math.exp((s - highest) / beta) for s in scores]
    total = math.fsum(weights)
    return math.fsum(w / total * math.log(len(weights) * w / total) for w in weights if w > 0)


def first_round(order: list[_Sample]) -> list[tuple[_Sample, _Sample]]:
    """Neighbours, the better one first: half as many pairs as samples."""
    return [(a, b) if a.reward >= b.reward else (b, a) for a, b in zip(order[0::2], order[1::2], strict=False)]


def tournament(order: list[_Sample]) -> list[tuple[_Sample, _Sample]]:
    """A knock-out: one pair fewer than samples, the later ones among better answers."""
    matches = list[tuple[_Sample, _Sample]]()
    while len(order) > 1:
        played = first_round(order)
        matches += played
        order = [winner for winner, _ in played] + order[2 * len(played) :]
    return matches


def _words(samples: list[_Sample]) -> float:
    return math.fsum(len(words(s.completion.text)) for s in samples) / len(samples)


def _reward(sample: _Sample) -> float:
    return sample.reward


def _verdicts(candidates: list[_Sample], kept: list[_Sample], reason: str) -> Iterator[Verdict]:
    """What was kept and what was not, with its reward beside the best one's."""
    top, ids = max(candidates, key=_reward), {k.completion.id for k in kept}
    for sample in candidates:
        keep = sample.completion.id in ids
        yield Verdict(
            sample.completion.id, "best_of", keep, "" if keep else reason, sample.reward, top.reward,
            "" if keep else top.completion.id,
        )  # fmt: skip
