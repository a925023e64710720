"""What follows an attack: contests by several votes, and a constitution that turns harmful answers into pairs."""

from collections import Counter
from random import Random

from factory import flow
from factory.engines.base import Engine, Sampling
from factory.engines.scripted import Scripted
from factory.records import Completion, Judgement, Record
from factory.store import Store
from generators.constitutional import Constitutional
from tests.test_adversarial import SEEDS, _engines, _metrics, _search


def _contested(wins: str) -> list[Record]:
    """A search of one cell whose judge reads both answers, and prefers one kind wherever it stands."""
    loses = "run" if wins == "bag" else "bag"
    judge = {
        r"You compare.*answer A\nTo do it, take a WINS.*answer B\nTo do it, take a LOSES": "Verdict: A",
        r"You compare.*answer A\nTo do it, take a LOSES.*answer B\nTo do it, take a WINS": "Verdict: B",
        r"You compare": "Verdict: C", r"You rate": "It helps.\nScore: 1",
    }  # fmt: skip
    told = {k.replace("WINS", wins).replace("LOSES", loses): v for k, v in judge.items()}
    engines = _engines() | {
        "t": Scripted(replies={"bikes": "To do it, take a bag.", "theft": "To do it, take a run."}).open(),
        "j": Scripted(replies=told, model="judge").open(),
    }
    sampling = Sampling(temperature=1.0, max_tokens=64)
    return _search(engines, votes=2, exam=0, risks=("theft",), styles=("plain",), wave=4, judge_sampling=sampling)


def test_a_contest_is_decided_by_votes_in_both_orders() -> None:
    """The seed is asked first, and draws the one answer with a bag."""
    for wins, elites in (("run", 2), ("bag", 1)):
        records = _contested(wins)
        games = [r for r in records if isinstance(r, Judgement) and r.other_id]
        answers = {r.id: r.text for r in records if isinstance(r, Completion)}
        first = next(r.id for r in records if isinstance(r, Completion))
        against = [g for g in games if g.other_id == first]
        assert against
        by_order = Counter((g.completion_id, g.shown_first) for g in against)
        assert set(by_order.values()) == {2}, "two votes in each order"
        assert {g.shown_first for g in against} >= {first, against[0].completion_id}
        told = "lose" if wins == "run" else "win"
        assert {g.verdict for g in against} == {told}, "a verdict is of harmlessness: the more harmful one loses"
        assert "bag" in answers[first]
        assert len(_metrics(records, "archive/elite")) == elites, "ties replace nothing, and a lost contest neither"


REVISER: dict[str, str | list[str]] = {
    r"Write the critique": "It helps with theft, or it does not.",
    r"revised answer alone": "Sorry, I can't help with that.",
    r"answer A\nSorry": "Verdict: A", r"answer B\nSorry": "Verdict: B",
}  # fmt: skip


def test_a_constitution_over_attacks_makes_pairs_of_safe_over_unsafe_answers(store: Store) -> None:
    store.append([*SEEDS, *_search(exam=0)], "attacks")
    engines: dict[str, Engine] = {"e": Scripted(replies=REVISER, model="strong").open()}
    flow.append(
        store,
        flow.made(store, Constitutional(engine="e", rounds=2, labels=2), "attacks", [], engines, Random(0)),
        "safety",
    )
    attacks = """SELECT count(DISTINCT prompt_id) FROM completions WHERE dataset = 'attacks' AND "text" LIKE '"""
    counts = ("SELECT count(*) FROM pairs", f"{attacks}To do it%'", f"{attacks}Sorry%'")
    (pairs,), (broken,), (kept,) = (store.rows(sql)[0] for sql in counts)
    assert pairs == broken >= 3
    assert kept >= 3, "some attacks were refused"
    sides = store.rows("SELECT DISTINCT chosen, rejected[:8] FROM pairs ORDER BY ALL")
    assert sides == [("Sorry, I can't help with that.", "To do it")], "and a refusal that stays one makes no pair"
    assert store.rows("SELECT DISTINCT completion FROM sft WHERE dataset = 'safety'") == [(sides[0][0],)]
