"""Gold reward against KL: nothing from itself, much from a stranger, the checker's marks, and what a choice costs."""

import math
from collections.abc import Iterator

import pytest

from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.engines.transformers import Transformers
from factory.errors import EngineError, SpecError
from factory.evaluations.frontier import Frontier
from factory.records import Completion, Judgement, Metric


@pytest.fixture(scope="module")
def strong() -> Iterator[Engine]:
    engine = Transformers(model="mini-strong", threads=1).open()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def weak() -> Iterator[Engine]:
    engine = Transformers(model="mini-weak", threads=1).open()
    yield engine
    engine.close()


def _found(step: Frontier, engines: dict[str, Engine]) -> dict[str, Metric]:
    return {r.name: r for r in step.evaluate(engines) if isinstance(r, Metric)}


def test_no_distance_from_itself_and_much_from_a_model_that_never_chatted(strong) -> None:
    kl = {}
    for base in ("mini-strong", "mini-weak", "mini-base"):
        step = Frontier(models={"strong": "strong"}, base=base, tasks=24, unsafe=4, lookalikes=4)
        metric = _found(step, {"strong": strong})["kl"]
        assert (metric.meta["model"], metric.meta["n"]) == ("strong", 32)
        assert metric.meta["low"] <= metric.value <= metric.meta["high"]
        kl[base] = metric.value
    assert abs(kl["mini-strong"]) < 0.05
    assert 0.3 < kl["mini-weak"] < kl["mini-base"]
    assert math.isfinite(kl["mini-base"])


def test_gold_is_the_checkers_and_every_answer_is_a_row(strong) -> None:
    step = Frontier(models={"strong": "strong"}, base="mini-strong", tasks=30, unsafe=5, lookalikes=5)
    records = list(step.evaluate({"strong": strong}))
    marks = [r for r in records if isinstance(r, Judgement)]
    completions = [r for r in records if isinstance(r, Completion)]
    found = {r.name: r.value for r in records if isinstance(r, Metric)}
    assert len(marks) == len(completions) == 40
    right, harmful = (sum(m.rationale == o for m in marks) for o in ("right", "harmful"))
    assert found["gold_reward"] == pytest.approx((right - harmful) / 40)
    assert found["gold_reward"] > 0.5
    assert found["harmful_rate"] == harmful / 5


def test_best_of_n_is_chosen_by_the_reward_and_pays_for_the_choice(weak) -> None:
    def found(**options: object) -> dict[str, Metric]:
        step = Frontier(models={"m": "weak"}, base="mini-weak", tasks=60, unsafe=0, lookalikes=0, **options)
        return _found(step, {"weak": weak})

    one, best = found(), found(n=8, reward={"rule": "exact"})
    assert best["gold_reward"].value > one["gold_reward"].value + 0.05
    bound = math.log(8) - 7 / 8
    assert one["kl"].value == pytest.approx(0.0, abs=0.05)
    assert best["kl"].value == pytest.approx(bound, abs=0.05)


def test_several_answers_need_a_reward() -> None:
    step = Frontier(models={"x": "x"}, base="mini-weak", n=4)
    with pytest.raises(SpecError, match="n=4 answers need a reward"):
        list(step.evaluate({"x": Scripted(replies={".": "yes"}).open()}))


def test_an_engine_without_log_probabilities_is_told_to_the_user() -> None:
    engine = Scripted(replies={".": "yes"}).open()
    with pytest.raises(EngineError, match="tells no log-probabilities; use a local one"):
        list(Frontier(models={"x": "x"}, base="mini-weak", tasks=2, unsafe=0, lookalikes=0).evaluate({"x": engine}))


def test_a_model_that_answers_nothing_is_no_perfect_one() -> None:
    engine = Scripted(replies={".": "yes"}, error_every=1).open()
    with pytest.raises(EngineError, match="x answered nothing"):
        list(Frontier(models={"x": "x"}, base="mini-weak", tasks=2, unsafe=0, lookalikes=0).evaluate({"x": engine}))
