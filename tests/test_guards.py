"""Guards against reward hacking, on curves whose truth is known: they stop at the peak and keep quiet elsewhere."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from math import exp, sqrt
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from trainers._guards import CHECKS, Alarm, Guard, Guarding, Reading


def _reading(step: int, d: float, gold: float | None, proxy: float, rng: Random, noise: float) -> Reading:
    """A reading of a sound policy, but for its rewards."""
    return Reading(
        step, d * d + rng.gauss(0, 0.02 * d), proxy + rng.gauss(0, noise), gold and gold + rng.gauss(0, noise),
        length=20 + rng.gauss(0, 1), repetition=0.05 + rng.gauss(0, 0.01), eos_rate=0.95 + rng.gauss(0, 0.01),
        entropy=1.2 - 0.1 * d + rng.gauss(0, 0.02),
    )  # fmt: skip


def _hacked(noise: float, seed: int, count: int = 200) -> Iterator[tuple[float, Reading]]:
    """Gao et al.'s gold, d (1 - d / 4): its peak is 1, at d = 2; the proxy follows d. The true gold comes along."""
    rng = Random(f"{noise} {seed}")
    for step in range(count):
        d = 4 * step / count
        yield d * (1 - d / 4), _reading(step, d, d * (1 - d / 4), d, rng, noise)


def _sound(noise: float, seed: int, count: int = 200) -> Iterator[Reading]:
    """Gold and proxy rise, and settle."""
    rng = Random(f"{noise} {seed}")
    for step in range(count):
        d = 3 * sqrt(step / count)
        yield _reading(step, d, 1 - exp(-1.5 * d), 1.1 - exp(-1.5 * d) + 0.1 * d, rng, noise)


def _alarms(readings: Any, **options: Any) -> list[Alarm]:
    guard = Guard(Guarding(**options))
    return [alarm for reading in readings for alarm in guard.watch(reading)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("seed", range(5))
def test_over_optimisation_is_stopped_within_a_tenth_of_the_gold_peak(noise: float, seed: int) -> None:
    guard = Guard(Guarding())
    watched = ((true, reading, guard.watch(reading)) for true, reading in _hacked(noise, seed))
    true, reading, alarms = next(w for w in watched if w[2])
    assert [a.name for a in alarms] == ["over_optimisation"]
    assert reading.step > 100, "not before the peak"
    assert true >= 0.9
    assert alarms[0].action == "stop"
    assert alarms[0].value > alarms[0].threshold
    assert "the proxy rose from" in alarms[0].says
    assert 80 <= guard.best_step <= 120


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1, 0.3])
def test_sound_runs_give_no_alarm(noise: float) -> None:
    for seed in range(8):
        assert _alarms(_sound(noise, seed)) == []


def test_a_flat_gold_is_rarely_taken_for_a_falling_one() -> None:
    flat = [[replace(r, gold=0.5 + Random(f"{s} {r.step}").gauss(0, 0.05)) for r in _sound(0.05, s)] for s in range(20)]
    assert sum(bool(_alarms(readings)) for readings in flat) <= 3


def test_without_a_gold_reward_the_disagreement_is_taken_off_the_proxy() -> None:
    unseen = [replace(r, gold=None, disagreement=0.1 + r.kl / 4) for _, r in _hacked(0.01, 1)]
    found = [a for a in _alarms(unseen) if a.name == "over_optimisation"]
    assert found, "mean less disagreement is d (1 - d / 4) again"
    none = [replace(r, gold=None) for _, r in _hacked(0.01, 1)]
    assert _alarms(none) == [], "nothing tells"


def test_gold_that_falls_with_the_proxy_or_without_moving_is_no_over_optimisation() -> None:
    together = [replace(r, proxy=true) for true, r in _hacked(0.0, 1)]
    assert _alarms(together) == []
    still = [replace(r, kl=1.0) for _, r in _hacked(0.0, 1)]
    assert _alarms(still) == []


def test_gold_that_is_measured_now_and_then_is_enough() -> None:
    some = [replace(r, gold=r.gold if r.step % 4 == 0 else None) for _, r in _hacked(0.0, 1)]
    found = _alarms(some)
    assert [a.name for a in found][:1] == ["over_optimisation"]


def _turning(change: dict[str, tuple[float, float]], noise: float = 0.0) -> list[Reading]:
    """A sound run in which some measures go from one value to another."""
    rng = Random(3)
    return [
        replace(r, **{n: a + (b - a) * r.step / 199 + rng.gauss(0, noise) for n, (a, b) in change.items()})  # type: ignore[arg-type]
        for r in _sound(0.0, 0)
    ]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("disagreement", {"disagreement": (0.2, 0.7)}, "its deviation went from 0.2"),
        ("length", {"length": (20.0, 60.0)}, "answers grow: from 20"),
        ("length", {"length": (60.0, 20.0)}, "answers shrink: from 59"),
        ("repetition", {"repetition": (0.05, 0.5)}, "5 % at the start"),
        ("eos", {"eos_rate": (0.9, 0.1)}, "90 % at the start"),
        ("entropy", {"entropy": (1.0, 0.01)}, "hardly explores any more"),
        ("negative_kl", {"kl": (0.0, -3.0)}, "no KL is negative"),
        ("kl", {"kl": (0.0, 60.0)}, "nats from the reference"),
        ("dead_groups", {"groups_dead": (0.1, 1.0)}, "all answers have the same reward"),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_each_sign_gives_its_own_warning_once(name: str, change: dict[str, Any], says: str, noise: float) -> None:
    found = _alarms(_turning(change, noise))
    assert [(a.name, a.action) for a in found] == [(name, "warn")]
    assert says in found[0].says
    assert _alarms(_turning(change, noise), **{f"guard_{name}": "off"}) == []
    assert {a.action for a in _alarms(_turning(change, noise), **{f"guard_{name}": "roll_back"})} == {"roll_back"}


def test_a_category_that_pays_for_the_others_is_named() -> None:
    def moved(verse: float, sums: float) -> list[Reading]:
        shift = {"verse": verse, "sums": sums}
        return [replace(r, categories={n: 0.5 + by * r.step / 199 for n, by in shift.items()}) for r in _sound(0.0, 0)]

    found = _alarms(moved(-0.3, 0.4))
    assert [a.name for a in found] == ["categories"]
    assert "category 'verse' pays for the others" in found[0].says
    assert _alarms(moved(0.05, 0.4)) == [], "to gain less is not to lose"
    assert _alarms(moved(-0.3, -0.3)) == [], "all lose: that is no shift"


def test_an_alarm_that_lasts_is_given_again_where_it_is_to_do_something() -> None:
    found = _alarms(_turning({"kl": (0.0, 60.0)}), guard_kl="raise_kl")
    assert len(found) > 5
    assert {a.action for a in found} == {"raise_kl"}
    assert all(b.value > a.value for a, b in pairwise(found))


def test_a_warning_comes_again_when_all_had_been_well_between() -> None:
    kl = [1.0] * 10 + [50.0] * 10 + [1.0] * 10 + [50.0] * 10
    readings = [replace(r, kl=k) for r, k in zip(_sound(0.0, 0), kl, strict=False)]
    assert [a.name for a in _alarms(readings, guard_over_optimisation="off")] == ["kl", "kl"]


def test_a_guard_that_was_kept_as_json_goes_on_as_if_nothing_had_been() -> None:
    readings = [r for _, r in _hacked(0.01, 2)]
    whole = Guard(Guarding(guard_over_optimisation="raise_kl"))
    expected = [whole.watch(r) for r in readings]
    first, second = Guard(whole.options), Guard(whole.options)
    found = [first.watch(r) for r in readings[:130]]
    second.restore(json.loads(json.dumps(first.state())))
    assert found + [second.watch(r) for r in readings[130:]] == expected
    assert second.best_step == whole.best_step


def test_every_alarm_has_its_option_and_every_option_its_help() -> None:
    names = {f.name for f in fields(Guarding)}  # type: ignore[arg-type]
    assert {f"guard_{name}" for name in CHECKS} <= names
    assert all(len(f.description) > 10 for f in Guarding.__pydantic_fields__.values())  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="raise_kl"):
        Guarding(guard_kl="shout")  # type: ignore[arg-type]
