"""Guards against reward hacking: what is read while a policy learns, and when that is a reason to stop it.

A policy that learns from a proxy of what is wanted first gets better by both, then better by the proxy alone. Gao,
Schulman and Hilton (2022, "Scaling laws for reward model overoptimization") find that the gold reward follows
d (alpha - beta d) with d = sqrt(KL): it rises, has one peak, and falls, while the proxy goes on rising. `Guard` looks
for that fall in a held-out gold reward, or, where there is none, in the mean of an ensemble less its disagreement
(Coste et al., 2023), and beside it for the signs that are seen first: length, repetition, answers that do not end,
entropy, KL, groups in which all answers are rewarded alike, and categories that pay for the gain of the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, log, sqrt
from statistics import fmean
from typing import Any, Literal, NamedTuple

from pydantic import Field

from factory.options import step

Action = Literal["warn", "raise_kl", "stop", "roll_back"]
Choice = Literal["off", "warn", "raise_kl", "stop", "roll_back"]
_SMOOTH = 3  # readings that are averaged before they are compared with the first ones
_SCALES = (3, 6, 12, 24, 48)  # windows in which a fall of the gold is looked for: quiet runs need few readings
_FALSE = 0.05  # a run without a fall may give an alarm so often; all its pairs of windows share that out
_Z = 3.5  # standard errors that a change must have to count
_AGAIN = 10  # readings after which an alarm that lasts is given again, if more is to be done than to warn


@dataclass(frozen=True)
class Reading:
    """What is measured of a batch of rollouts. None: not measured this time."""

    step: int
    kl: float
    """KL of the policy from the reference, in nats a sequence."""
    proxy: float
    """Mean of the reward that is trained on, without the KL."""
    gold: float | None = None
    """Mean of a reward that is not trained on: a checker, a second model."""
    disagreement: float | None = None
    """Mean deviation of an ensemble's rewards of one answer."""
    length: float = 0.0
    """Mean tokens of an answer."""
    repetition: float = 0.0
    """Share of an answer's n-grams that stood in it before."""
    eos_rate: float = 1.0
    """Share of answers that end by themselves."""
    entropy: float = 0.0
    """Mean entropy of the policy's next token, in nats."""
    groups_dead: float | None = None
    """Share of groups whose answers all have the same reward."""
    categories: Mapping[str, float] = field(default_factory=dict)
    """Mean reward of each category of prompts."""


@dataclass(frozen=True)
class Alarm:
    """A threshold that was passed, what to do about it, and what to tell people."""

    name: str
    value: float
    threshold: float
    action: Action
    says: str


@step
class Guarding:
    """What to watch for while a policy learns, and what to do then: off, warn, raise_kl, stop, roll_back."""

    guard_over_optimisation: Choice = "stop"
    """When the proxy rises and the held-out gold (or mean less disagreement) falls from its best."""
    guard_gold_fall: float = Field(default=0.05, gt=0)
    """So far may the gold reward fall, as a share of what it had gained; noise is allowed for beside that."""
    guard_pessimism: float = Field(default=1.0, ge=0)
    """Without a gold reward: how many disagreements are taken off the ensemble's mean."""
    guard_disagreement: Choice = "warn"
    """When the members of a reward ensemble agree less and less."""
    guard_disagreement_growth: float = Field(default=2.0, gt=1)
    """So many times the disagreement at the start."""
    guard_length: Choice = "warn"
    """When answers grow longer or shorter."""
    guard_length_drift: float = Field(default=1.5, gt=1)
    """So many times the length at the start, or so many times shorter."""
    guard_repetition: Choice = "warn"
    """When answers begin to repeat themselves."""
    guard_repetition_rise: float = Field(default=0.1, gt=0)
    """So much more than the share of repeated n-grams at the start."""
    guard_eos: Choice = "warn"
    """When answers do not end any more."""
    guard_eos_share: float = Field(default=0.5, gt=0, lt=1)
    """The share of answers that end falls below this part of what it was."""
    guard_entropy: Choice = "warn"
    """When the policy has almost no choice left."""
    guard_entropy_share: float = Field(default=0.2, gt=0, lt=1)
    """The entropy falls below this part of what it was."""
    guard_negative_kl: Choice = "warn"
    """When the KL is negative, which a KL cannot be: samples and log-probabilities are not of one distribution."""
    guard_negative_kl_below: float = Field(default=-0.05, lt=0)
    """Nats below which a KL is not taken for noise."""
    guard_kl: Choice = "warn"
    """When the policy is far from the reference."""
    guard_kl_above: float = Field(default=20.0, gt=0)
    """Nats a sequence; sound runs stay below 10."""
    guard_categories: Choice = "warn"
    """When a category of prompts loses while the whole gains."""
    guard_category_fall: float = Field(default=0.15, gt=0)
    """So much reward may a category lose."""
    guard_dead_groups: Choice = "warn"
    """When most groups teach nothing, as all their answers have the same reward."""
    guard_dead_share: float = Field(default=0.8, gt=0, lt=1)
    """The share of such groups."""


class _Sign(NamedTuple):
    """What a check found: whether it is bad, the number beside its bound, and the sentence."""

    bad: bool
    value: float
    threshold: float
    says: str


class Guard:
    """Watches one run. Readings come in the order of their steps."""

    def __init__(self, options: Guarding) -> None:
        self.options, self.readings = options, list[Reading]()
        self._since: dict[str, int] = {}  # alarm -> the number of readings at which it was last given

    def watch(self, reading: Reading) -> tuple[Alarm, ...]:
        """Note a reading; returns the alarms that it gives. A warning is given once, until all has been well again."""
        self.readings.append(reading)
        return tuple(self._alarms())

    @property
    def best_step(self) -> int:
        """The step of the best smoothed gold so far: what to roll back to. Without a gold, by the pessimistic proxy."""
        watched = _watched(self.readings, self.options.guard_pessimism)
        means = _means([y for _, y in watched], min(_SMOOTH, len(watched)))
        if not means:
            return self.readings[-1].step if self.readings else 0
        return watched[means.index(max(means)) + len(watched) - len(means)][0].step

    def state(self) -> dict[str, Any]:
        """What to keep for a resume, as JSON."""
        return {"readings": [asdict(r) for r in self.readings], "since": self._since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.readings = [Reading(**r) for r in state["readings"]]
        self._since = dict(state["since"])

    def _alarms(self) -> Iterator[Alarm]:
        for name, check in CHECKS.items():
            action: Choice = getattr(self.options, f"guard_{name}")
            sign = check(self.readings, self.options) if action != "off" else None
            if sign is None or not sign.bad:
                self._since.pop(name, None)
            elif action != "off" and self._due(name, action):
                self._since[name] = len(self.readings)
                yield Alarm(name, sign.value, sign.threshold, action, sign.says)

    def _due(self, name: str, action: Action) -> bool:
        if name not in self._since:
            return True
        return action != "warn" and len(self.readings) - self._since[name] >= _AGAIN


# --- the gold reward -------------------------------------------------------------------------------------------------


def over_optimised(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    """The proxy rises, sqrt(KL) grows, and the gold has fallen from its best, by more than noise and the share allowed.

    Several widths of smoothing are tried: with little noise a narrow one sees the fall at once, with much a wide one.
    """
    watched = _watched(readings, options.guard_pessimism)
    gold = [y for _, y in watched]
    proxy, far = [r.proxy for r, _ in watched], [sqrt(max(0.0, r.kl)) for r, _ in watched]
    noise, found = _noise(gold) * (1 + 4 / max(1, len(gold) - 2)), None  # of few readings it is not known well
    for width in _SCALES:
        if len(gold) < 2 * width:
            break
        means, pushed, away = _means(gold, width), _means(proxy, width), _means(far, width)
        best = max(range(len(means) - width), key=means.__getitem__)
        gain = max(0.0, means[best] - fmean(gold[:_SMOOTH]))
        drop, allowed = (
            means[best] - means[-1],
            max(options.guard_gold_fall * gain, _luck(len(gold), width) * noise * sqrt(2 / width)),
        )
        bad = drop > allowed and pushed[-1] > pushed[best] and away[-1] > away[best]
        if bad or found is None:
            says = (
                f"over-optimisation: the gold reward fell from {means[best]:.3g} to {means[-1]:.3g} (sqrt(KL)"
                f" {away[best]:.2f} to {away[-1]:.2f}) while the proxy rose from {pushed[best]:.3g} to {pushed[-1]:.3g}"
            )
            found = _Sign(bad, drop, allowed, says)
        if bad:
            break
    return found


def _watched(readings: Sequence[Reading], pessimism: float) -> list[tuple[Reading, float]]:
    """The readings with a gold reward; if none has one, those with a disagreement, which is taken off the proxy."""
    gold = [(r, r.gold) for r in readings if r.gold is not None]
    return gold or [(r, r.proxy - pessimism * r.disagreement) for r in readings if r.disagreement is not None]


def _luck(count: int, width: int) -> float:
    """How many standard errors the best of all pairs of windows is off by luck: Bonferroni with a Gaussian's tail."""
    return sqrt(2 * log(len(_SCALES) * (count / width) ** 2 / _FALSE))


def _noise(values: Sequence[float]) -> float:
    """The deviation of a single value, from second differences, so that slopes do not count (Gasser et al., 1986)."""
    bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return sqrt(fmean(x * x for x in bends) / 6) if bends else inf


def _means(values: Sequence[float], width: int) -> list[float]:
    """The mean of each `width` neighbours."""
    return [fmean(values[i : i + width]) for i in range(len(values) - width + 1)] if width else []


# --- the signs beside it ---------------------------------------------------------------------------------------------


def _then_and_now(values: Sequence[float | None]) -> tuple[float, float, float] | None:
    """The mean of the first and of the last readings, and three standard errors of their difference."""
    known = [v for v in values if v is not None]
    if len(known) < 2 * _SMOOTH:
        return None
    return fmean(known[:_SMOOTH]), fmean(known[-_SMOOTH:]), _Z * _noise(known) * sqrt(2 / _SMOOTH)


def _disagreement(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if not (found := _then_and_now([r.disagreement for r in readings])):
        return None
    then, now, error = found
    bound = then * options.guard_disagreement_growth
    says = f"the reward ensemble disagrees: its deviation went from {then:.3g} to {now:.3g}; trust its mean less"
    return _Sign(now > bound and now - then > error, now, bound, says)


def _length(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if not (found := _then_and_now([r.length for r in readings])):
        return None
    then, now, error = found
    grown = now >= then
    bound = then * options.guard_length_drift if grown else then / options.guard_length_drift
    says = (
        f"answers {'grow' if grown else 'shrink'}: from {then:.1f} to {now:.1f} tokens; the reward may pay for length"
    )
    return _Sign((now > bound if grown else now < bound) and abs(now - then) > error, now, bound, says)


def _repetition(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if not (found := _then_and_now([r.repetition for r in readings])):
        return None
    then, now, error = found
    bound = then + options.guard_repetition_rise
    says = f"answers repeat themselves: {100 * now:.0f} % of their n-grams, {100 * then:.0f} % at the start"
    return _Sign(now > bound and now - then > error, now, bound, says)


def _eos(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if not (found := _then_and_now([r.eos_rate for r in readings])):
        return None
    then, now, error = found
    bound = then * options.guard_eos_share
    says = (
        f"answers do not end: {100 * now:.0f} % of them end by themselves, {100 * then:.0f} % at the start;"
        " punish a missing end, or allow more tokens"
    )
    return _Sign(now < bound and then - now > error, now, bound, says)


def _entropy(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if not (found := _then_and_now([r.entropy for r in readings])):
        return None
    then, now, error = found
    bound = then * options.guard_entropy_share
    says = (
        f"the policy's entropy fell from {then:.3g} to {now:.3g} nats: it hardly explores any more; raise"
        " entropy_coef, the KL coefficient or temperature, or lower learning_rate"
    )
    return _Sign(now < bound and then - now > error, now, bound, says)


def _last(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known[-_SMOOTH:]) if len(known) >= _SMOOTH else None


def _negative_kl(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if (now := _last([r.kl for r in readings])) is None:
        return None
    says = (
        f"the KL is {now:.3g}: no KL is negative, so answers were not drawn from the distribution whose"
        " log-probabilities are compared: look at temperature, top_p, and the template"
    )
    return _Sign(now < options.guard_negative_kl_below, now, options.guard_negative_kl_below, says)


def _kl(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if (now := _last([r.kl for r in readings])) is None:
        return None
    says = f"the policy is {now:.3g} nats from the reference; raise the KL coefficient, or stop earlier"
    return _Sign(now > options.guard_kl_above, now, options.guard_kl_above, says)


def _categories(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    """The category that lost most, if the categories on the whole did not lose."""
    series = {n: [r.categories[n] for r in readings if n in r.categories] for r in readings for n in r.categories}
    found = {name: moved for name, values in series.items() if (moved := _then_and_now(values))}
    if len(found) < 2:
        return None
    whole = fmean(now - then for then, now, _ in found.values())
    name, (then, now, error) = min(found.items(), key=lambda item: (item[1][1] - item[1][0], item[0]))
    says = f"category {name!r} pays for the others: its reward fell from {then:.3g} to {now:.3g}"
    lost = then - now
    return _Sign(whole > 0 and lost > max(error, options.guard_category_fall), lost, options.guard_category_fall, says)


def _dead_groups(readings: Sequence[Reading], options: Guarding) -> _Sign | None:
    if (now := _last([r.groups_dead for r in readings])) is None:
        return None
    says = (
        f"in {100 * now:.0f} % of the groups all answers have the same reward, so they teach nothing: choose harder or"
        " easier prompts, larger groups, or a finer reward"
    )
    return _Sign(now > options.guard_dead_share, now, options.guard_dead_share, says)


CHECKS: Mapping[str, Callable[[Sequence[Reading], Guarding], _Sign | None]] = {
    "over_optimisation": over_optimised,
    "disagreement": _disagreement,
    "length": _length,
    "repetition": _repetition,
    "eos": _eos,
    "entropy": _entropy,
    "negative_kl": _negative_kl,
    "kl": _kl,
    "categories": _categories,
    "dead_groups": _dead_groups,
}
