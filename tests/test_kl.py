"""How far a model is from another: nothing from itself, much from a stranger, and the same tokens on both sides."""

import math

import pytest

from factory.engines.scripted import Scripted
from factory.engines.transformers import Transformers
from factory.errors import EngineError
from factory.evaluations.kl import Kl


@pytest.fixture(scope="module")
def strong():
    engine = Transformers(model="mini-strong", threads=1).open()
    yield engine
    engine.close()


def test_no_distance_from_itself_and_much_from_a_model_that_never_chatted(strong) -> None:
    found = {}
    for base in ("mini-strong", "mini-weak", "mini-base"):
        step = Kl(models={"strong": "strong"}, base=base, tasks=24, unsafe=4, lookalikes=4)
        [metric] = step.evaluate({"strong": strong})
        assert (metric.meta["model"], metric.meta["n"]) == ("strong", 32)
        assert metric.meta["low"] <= metric.value <= metric.meta["high"]
        found[base] = metric.value
    assert abs(found["mini-strong"]) < 0.05
    assert 0.3 < found["mini-weak"] < found["mini-base"]
    assert math.isfinite(found["mini-base"])


def test_an_engine_without_log_probabilities_is_told_to_the_user() -> None:
    engine = Scripted(replies={".": "yes"}).open()
    with pytest.raises(EngineError, match="tells no log-probabilities; use a local one"):
        list(Kl(models={"x": "x"}, base="mini-weak", tasks=2, unsafe=0, lookalikes=0).evaluate({"x": engine}))
