from collections.abc import Iterator
from decimal import Decimal
from itertools import count, islice

import pytest

from factory.engines.base import Reply, Request, Sampling, in_order
from factory.engines.budget import Budget, Budgeted, Limits
from factory.engines.journal import Journal
from factory.engines.scripted import Scripted
from factory.errors import BudgetError, EngineError
from factory.records import user
from factory.store import Store


def _requests(n: int, **sampling: int) -> list[Request]:
    return [Request(user(f"question {i}"), Sampling(**sampling)) for i in range(n)]  # type: ignore[arg-type]


def _calls(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM calls")[0][0])


def test_replies_are_stored_before_they_are_handed_on(store: Store) -> None:
    journal = Journal(Scripted().open(), store)
    for handed_on, _ in enumerate(journal.generate(_requests(600)), 1):
        if handed_on in {1, 255, 256, 257, 600}:
            assert _calls(store) >= handed_on


def test_what_was_answered_is_never_asked_again(store: Store) -> None:
    first = list(in_order(Journal(Scripted(shuffle=7).open(), store), _requests(500)))
    dead = Scripted(die_after=1).open()  # would die if it were asked twice
    second = list(in_order(Journal(dead, store), _requests(500)))
    assert [r.text for r in first] == [r.text for r in second]
    assert all(r.key for r in second)
    assert _calls(store) == 500


def test_an_engine_that_dies_loses_nothing_that_it_answered(store: Store) -> None:
    got = []
    with pytest.raises(EngineError, match="died after 300"):
        for reply in Journal(Scripted(die_after=300).open(), store).generate(_requests(500)):
            got.append(reply)
    assert len(got) >= 256
    assert _calls(store) == 300
    assert len(list(Journal(Scripted().open(), store).generate(_requests(500)))) == 500
    assert _calls(store) == 500


def test_a_larger_limit_asks_only_the_truncated_again(store: Store) -> None:
    list(Journal(Scripted(truncate_every=4).open(), store).generate(_requests(40, max_tokens=10)))
    assert store.rows("SELECT count(*) FROM calls WHERE finish_reason = 'length'") == [(10,)]
    replies = list(Journal(Scripted().open(), store).generate(_requests(40, max_tokens=20)))
    assert len(replies) == 40
    assert _calls(store) == 50


def test_errors_are_rows_and_are_asked_again(store: Store) -> None:
    replies = list(Journal(Scripted(error_every=5).open(), store).generate(_requests(20)))
    assert sum(r.finish_reason == "error" for r in replies) == 4
    assert store.rows("SELECT DISTINCT error FROM calls WHERE error <> ''") == [("an error that was asked for",)]
    assert all(r.finish_reason == "stop" for r in Journal(Scripted().open(), store).generate(_requests(20)))
    assert _calls(store) == 24


def test_another_model_seed_or_temperature_is_another_question(store: Store) -> None:
    one = Request(user("q"))
    asked = [one, Request(user("q"), seed=1), Request(user("q"), Sampling(temperature=0)), Request("q")]
    assert len({r.id for r in asked}) == 4
    assert one.id == Request(user("q"), Sampling(max_tokens=7)).id
    for model in ("a", "b"):
        list(Journal(Scripted(model=model).open(), store).generate(asked))
    assert _calls(store) == 8


def test_in_order_gives_the_order_of_asking_whatever_the_engine_does() -> None:
    requests = _requests(100)
    assert [r.request for r in in_order(Scripted(shuffle=9).open(), requests)] == requests
    twins = [requests[0]] * 3
    assert len(list(in_order(Scripted().open(), twins))) == 3


def test_an_engine_that_swallows_a_request_is_caught() -> None:
    class Lazy:
        model = "lazy"

        def generate(self, requests: Iterator[Request]) -> Iterator[Reply]:
            yield from (Reply(r) for i, r in enumerate(requests) if i != 3)

        def close(self) -> None: ...

    with pytest.raises(EngineError, match="without answering"):
        list(in_order(Lazy(), iter(_requests(5))))  # type: ignore[arg-type]


def test_requests_are_pulled_as_they_are_needed(store: Store) -> None:
    pulled = count()
    requests = (Request(user(f"q{next(pulled)}")) for _ in range(100_000))
    list(islice(Journal(Scripted().open(), store).generate(requests), 300))
    assert next(pulled) < 2_000


def test_a_budget_of_calls_stops_before_it_is_passed(store: Store) -> None:
    budget = Budget(Limits(calls=7))
    journal = Journal(Budgeted(Scripted().open(), budget), store)
    with pytest.raises(BudgetError, match=r"7 calls.*raise `budget`"):
        list(journal.generate(_requests(20)))
    assert _calls(store) == 7, "what was answered is stored"
    again = Journal(Budgeted(Scripted().open(), Budget(Limits(calls=13))), store)
    assert len(list(again.generate(_requests(20)))) == 20, "what is stored costs nothing"


def test_a_budget_of_tokens_is_not_passed_even_in_the_worst_case() -> None:
    budget = Budget(Limits(tokens=400))
    with pytest.raises(BudgetError):
        list(Budgeted(Scripted().open(), budget).generate(_requests(200, max_tokens=50)))
    assert 0 < budget.tokens <= 400


def test_money_is_counted_exactly() -> None:
    budget = Budget(Limits(usd=Decimal("0.3")))
    for _ in range(3):
        budget.spend(Reply(Request("x"), usd=Decimal("0.1")))
    assert budget.usd == Decimal("0.3")
    assert budget.room(0, 0, Decimal(0))
    assert not budget.room(0, 0, Decimal("0.000001"))
