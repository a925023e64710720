"""Preference pairs: candidates, opinions, what becomes of them in the views, and the defects of other tools."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from factory import flow
from factory.engines.base import Sampling
from factory.engines.scripted import Scripted, ScriptedEngine
from factory.errors import DataError, SpecError
from factory.records import Completion, Judgement, Metric, Prompt, Record, Verdict, user
from factory.store import Store
from generators.adversarial import Adversarial
from generators.judge import Judge
from generators.preference_pairs import PreferencePairs

T = TypeVar("T", bound=Record)
PROMPTS = [Prompt(user(f"Add {i} and 1."), language="en") for i in range(6)]
PROMPTS += [Prompt(user(f"{i}加1等于几？"), language="zh") for i in range(4)]
ANSWERS = ["right", "wrong", "正确", "a much longer right answer"]
# A judge that knows what is right and says so in the language of its question.
KNOWS = {
    r"answer A\n(right|正确|a much).*answer B\nwrong": "It is.\nVerdict: A",
    r"answer A\nwrong.*answer B\n(right|正确|a much)": "It is.\nVerdict: B",
    r"回答 A\n(right|正确|a much).*回答 B\nwrong": "对。\n裁决：A",
    r"回答 A\nwrong.*回答 B\n(right|正确|a much)": "对。\n裁决：B",
    "answer A": "Verdict: tie",
    "回答 A": "裁决：平局",
}


def writer(**faults: object) -> ScriptedEngine:
    return Scripted(model="writer", replies={"^Add|^\\d加": ANSWERS}, **faults).open()  # type: ignore[arg-type]


def made(step: PreferencePairs, seed: int = 0, **engines: ScriptedEngine) -> list[Record]:
    return list(step.generate(PROMPTS, engines, Random(seed)))


def only(records: list[Record], kind: type[T]) -> list[T]:
    return [r for r in records if isinstance(r, kind)]


def metrics(records: list[Record]) -> dict[str, float]:
    return {m.name.split("/", 1)[1].replace("preference_pairs/", ""): m.value for m in only(records, Metric)}


PAIRWISE = PreferencePairs(engine="writer", judge="judge", n=5)


def test_pairs_are_what_both_orders_say_and_both_sides_differ(store: Store) -> None:
    records = made(PAIRWISE, writer=writer(), judge=Scripted(model="j", replies=KNOWS, shuffle=7).open())
    store.append(records, "d")
    pairs = store.rows("SELECT chosen, rejected, weight, votes, margin FROM pairs")
    assert pairs
    assert {r for _, r, *_ in pairs} == {"wrong"}
    assert {c for c, *_ in pairs} == {"right", "正确", "a much longer right answer"}
    assert {p[2:] for p in pairs} == {(1.0, 1, None)}
    found = metrics(records)
    counts = {m.name: m.value for m in only(records, Metric) if m.name.startswith("yield/")}
    assert counts["yield/preference_pairs/asked"] == 50
    assert counts["yield/preference_pairs/decided"] == len(pairs)
    answers = Counter(c.prompt_id for c in only(records, Completion))
    assert counts["yield/preference_pairs/judged"] == sum(n * (n - 1) // 2 for n in answers.values())
    assert found["consistency"] == 1.0
    assert found["first_slot"] == 0.5


def test_every_candidate_is_a_row_or_a_verdict_with_its_reason() -> None:
    records = made(PAIRWISE, writer=writer(error_every=7, truncate_every=9), judge=Scripted(replies=KNOWS).open())
    reasons = Counter(v.reason for v in only(records, Verdict))
    assert reasons["engine_error"] == 7
    assert reasons["truncated"] == 5
    assert reasons["repeated"] > 5
    kept = only(records, Completion)
    assert len(kept) + reasons["engine_error"] + reasons["truncated"] + reasons["repeated"] == 50
    assert len({(c.prompt_id, c.text) for c in kept}) == len(kept)
    assert not {v.record_id for v in only(records, Verdict)} & {c.id for c in kept}


def test_a_prompt_whose_answers_are_all_alike_is_told_and_stays() -> None:
    alike = Scripted(replies={".": "always this"}).open()
    records = made(PAIRWISE, writer=alike, judge=Scripted(replies=KNOWS).open())
    lonely = [v for v in only(records, Verdict) if v.reason == "nothing_to_compare"]
    assert [v.evidence_id for v in lonely] == [p.id for p in PROMPTS]
    assert not {v.record_id for v in lonely} & {p.id for p in PROMPTS}
    assert only(records, Judgement) == []


def test_the_same_seed_gives_the_same_rows_whatever_the_order_of_replies() -> None:
    plain = made(PAIRWISE, 3, writer=writer(), judge=Scripted(replies=KNOWS).open())
    mixed = made(PAIRWISE, 3, writer=writer(shuffle=11), judge=Scripted(replies=KNOWS, shuffle=13).open())
    small = made(
        PreferencePairs(engine="writer", judge="judge", n=5, wave=1),
        3,
        writer=writer(),
        judge=Scripted(replies=KNOWS).open(),
    )
    assert plain == mixed
    assert {r.id for r in plain if not isinstance(r, Metric)} == {r.id for r in small if not isinstance(r, Metric)}
    assert plain != made(PAIRWISE, 4, writer=writer(), judge=Scripted(replies=KNOWS).open())


def test_several_engines_answer_and_several_judges_vote(store: Store) -> None:
    step = PreferencePairs(engine=("one", "two"), judge=("knows", "first", "mute"), n=1)
    engines = {
        "one": Scripted(model="one", replies={".": "right"}).open(),
        "two": Scripted(model="two", replies={".": "wrong"}).open(),
        "knows": Scripted(model="knows", replies=KNOWS).open(),
        "first": Scripted(model="first", replies={"answer A": "Verdict: A", "回答 A": "裁决：A"}).open(),
        "mute": Scripted(model="mute", replies={".": "I cannot judge."}).open(),
    }
    records = made(step, **engines)
    store.append(records, "d")
    # One judge decides, one always says the first and so contradicts itself, one has no voice.
    rows = store.rows("SELECT chosen, rejected, weight, votes FROM pairs")
    assert rows == [("right", "wrong", 0.5, 2)] * len(PROMPTS)
    assert {c.model for c in only(records, Completion)} == {"one", "two"}
    found = metrics(records)
    assert found["consistency"] == 0.5
    assert found["invalid"] == pytest.approx(1 / 3)


def test_a_judge_that_always_says_the_first_decides_nothing(store: Store) -> None:
    judge = Scripted(replies={"answer A": "Verdict: A", "回答 A": "裁决：A"}).open()
    records = made(PAIRWISE, writer=writer(), judge=judge)
    store.append(records, "d")
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]
    assert {j.verdict for j in only(records, Judgement)} == {"win", "lose"}
    assert (metrics(records)["consistency"], metrics(records)["first_slot"]) == (0.0, 1.0)


def test_rankings_become_all_pairs_of_a_prompt(store: Store) -> None:
    """Names in the order of their worth, whatever the labels: C(K,2) pairs, grouped by prompt."""
    worth = ["gold", "iron", "lead"]
    rules = {}
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        shown = ".*".join(f"(?:answer|回答) {'ABC'[i]}\n{worth[o]}" for i, o in enumerate(order))
        best = sorted(range(3), key=lambda i: order[i])
        rules[shown] = "Ranking: " + " > ".join("ABC"[i] for i in best)
    engines = {w: Scripted(model=w, replies={".": w}).open() for w in worth}
    step = PreferencePairs(engine=("lead", "gold", "iron"), judge="judge", n=1, how="listwise")
    records = made(step, judge=Scripted(replies=rules).open(), **engines)
    store.append(records, "d")
    rows = store.rows("SELECT prompt_id, list((chosen, rejected) ORDER BY chosen, rejected) FROM pairs GROUP BY ALL")
    assert len(rows) == len(PROMPTS)
    assert {tuple(pairs) for _, pairs in rows} == {tuple(combinations(worth, 2))}
    assert step.calls(10) == 10 * (3 + 2)


@pytest.mark.parametrize(("how", "calls"), [("pairwise", 6 + 1), ("listwise", 2 + 1), ("pointwise", 3 * 5 + 1)])
def test_calls_are_estimated_with_the_judges_own_answers(how: str, calls: int) -> None:
    options = {"judge": ("one", "two"), "how": how, "reference": True}
    assert PreferencePairs(engine="e", n=3, **options).calls(10) == 10 * (3 + 2 * calls)  # type: ignore[arg-type]
    assert Judge(judge="j", reference=True).calls(10) == 10 * (2 + 1)


def test_votes_without_a_temperature_are_told_before_anything_is_asked() -> None:
    said = "votes is 3, but at temperature 0 all of them are one"
    with pytest.raises(SpecError, match=said):
        PreferencePairs(engine="e", judge="j", votes=3)
    with pytest.raises(SpecError, match=said):
        Judge(judge="j", votes=3)
    with pytest.raises(SpecError, match=said):
        Adversarial(engine="e", target="t", judges=("j",), votes=3)
    assert Judge(judge="j", votes=3, judge_sampling=Sampling(temperature=0.5)).judge_calls(2) == 6


def test_scores_become_margins_rankings_and_pairs(store: Store) -> None:
    rules = {
        rf"(?:answer|回答)\n{name}": f"Score: {s}"
        for name, s in (("right", 5), ("wrong", 2), ("正确", 5), ("a much", 4))
    }
    step = PreferencePairs(
        engine="writer", judge="judge", n=6, how="pointwise", aspects=("helpfulness", "style"), margin=1.0
    )
    records = made(step, writer=writer(), judge=Scripted(replies=rules).open())
    store.append(records, "d")
    rows = store.rows("SELECT DISTINCT chosen, rejected, margin FROM pairs ORDER BY ALL")
    assert rows == [("a much longer right answer", "wrong", 2.0), ("right", "wrong", 3.0), ("正确", "wrong", 3.0)]
    ranked = store.rows("SELECT completions[-1], scores FROM rankings")
    assert all(scores == sorted(scores, reverse=True) for _, scores in ranked)
    assert {last for last, scores in ranked if scores[-1] == 2.0} == {"wrong"}


# --- what other tools do wrong -------------------------------------------------------------------------------------


def test_tied_ratings_make_no_pair(store: Store) -> None:
    """distilabel's FormatTextGenerationDPO takes max and min: with tied ratings chosen is rejected."""
    step = PreferencePairs(engine="writer", judge="judge", n=4, how="pointwise", aspects=("helpfulness",))
    records = made(step, writer=writer(), judge=Scripted(replies={".": "Score: 4"}).open())
    store.append(records, "d")
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]
    assert {j.verdict for j in only(records, Judgement) if j.other_id} == {"tie"}


def test_a_missing_rating_is_no_crash_and_no_zero(store: Store) -> None:
    """The same step fails with a TypeError on the None that a rating which could not be read becomes."""
    rules = {r"(?:answer|回答)\n(right|正确|a much)": "Score: 4", r"(?:answer|回答)\nwrong": "I would rather not say."}
    step = PreferencePairs(engine="writer", judge="judge", n=4, how="pointwise", aspects=("helpfulness",))
    records = made(step, writer=writer(), judge=Scripted(replies=rules).open())
    store.append(records, "d")
    wrong = {c.id for c in only(records, Completion) if c.text == "wrong"}
    assert wrong
    assert {v.reason for v in only(records, Verdict) if v.evidence_id in wrong} >= {"unreadable"}
    assert not any(wrong & {j.completion_id, j.other_id} for j in only(records, Judgement) if j.other_id)
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]


def test_an_unreadable_verdict_is_not_replaced_by_a_coin(store: Store) -> None:
    """DataDreamer's JudgePairsWithPrompt records a coin flip as the judgement."""
    records = made(PAIRWISE, writer=writer(), judge=Scripted(replies={".": "Both have their merits!"}).open())
    store.append(records, "d")
    assert {j.verdict for j in only(records, Judgement)} == {"invalid"}
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]
    unread = [v for v in only(records, Verdict) if v.reason == "unreadable"]
    assert len(unread) == len(only(records, Judgement))
    assert {v.text for v in unread} == {"Both have their merits!"}
    assert metrics(records)["invalid"] == 1.0


# --- the views -----------------------------------------------------------------------------------------------------

Q = Prompt(user("q"))
GOOD, BAD = Completion(Q.id, "good"), Completion(Q.id, "bad")


def opinion(verdict: str, first: Completion | None, judge: str = "j") -> Judgement:
    shown = first.id if first else ""
    return Judgement(
        Q.id, GOOD.id, judge, "model", BAD.id, shown_first=shown, verdict=verdict, call_key=f"{verdict}{shown}"
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        ([("win", GOOD), ("win", BAD)], [("good", 1.0, 1)]),
        ([("lose", GOOD), ("lose", BAD)], [("bad", 1.0, 1)]),
        ([("win", GOOD), ("lose", BAD)], []),
        ([("win", GOOD), ("tie", BAD)], []),
        ([("win", GOOD), ("invalid", BAD)], []),
        ([("win", None)], [("good", 1.0, 1)]),
        ([("invalid", None)], []),
    ],
)
def test_one_judge_has_one_voice_in_the_view(
    store: Store, said: list[tuple[str, Completion | None]], rows: list[object]
) -> None:
    store.append([Q, GOOD, BAD, *(opinion(v, f) for v, f in said)], "d")
    assert store.rows("SELECT chosen, weight, votes FROM pairs") == rows


def test_a_contradiction_weighs_on_what_others_decided(store: Store) -> None:
    torn = [opinion("win", GOOD, "torn"), opinion("lose", BAD, "torn")]
    sure = [opinion("win", GOOD, "sure"), opinion("win", BAD, "sure")]
    mute = [opinion("invalid", GOOD, "mute"), opinion("invalid", BAD, "mute")]
    store.append([Q, GOOD, BAD, *torn, *sure, *mute], "d")
    assert store.rows("SELECT chosen, weight, votes FROM pairs") == [("good", 0.5, 2)]


def test_answers_to_two_different_prompts_are_no_training_pair(store: Store) -> None:
    other = Prompt(user("another"))
    stray = Completion(other.id, "stray")
    row = Judgement(Q.id, GOOD.id, "j", "model", stray.id, verdict="win")
    store.append([Q, other, GOOD, stray, row], "d")
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)]


# --- judging what exists -------------------------------------------------------------------------------------------


def test_answers_that_exist_are_judged_where_they_are(store: Store) -> None:
    answers = [Completion(p.id, t, seed=i) for p in PROMPTS for i, t in enumerate(("right", "wrong", "right"))]
    store.append([*PROMPTS, *answers, Verdict(PROMPTS[0].id, "exact", False, "dup")], "answers")
    engines = {"judge": Scripted(model="j", replies=KNOWS).open()}
    flow.append(store, flow.made(store, Judge(judge="judge"), "answers", ["exact"], engines, Random(0)), "judged")
    assert store.rows("SELECT chosen, rejected, count(*) FROM pairs GROUP BY ALL") == [("right", "wrong", 9)]
    drops = "SELECT reason, text, count(*) FROM drops WHERE dataset = 'judged' GROUP BY ALL"
    assert store.rows(drops) == [("repeated", "right", 9)]
    assert store.rows("SELECT count(*) FROM completions WHERE dataset = 'judged'") == [(27,)]


def test_scores_are_given_to_single_answers_too(store: Store) -> None:
    store.append([*PROMPTS, *(Completion(p.id, "right") for p in PROMPTS)], "answers")
    step = Judge(judge="judge", how="pointwise", aspects=("honesty",))
    engines = {"judge": Scripted(replies={".": "Score: 3"}).open()}
    flow.append(store, flow.made(store, step, "answers", [], engines, Random(0)), "answers")
    assert store.rows("SELECT aspect, score, count(*) FROM judgements GROUP BY ALL") == [("honesty", 3.0, 10)]


def test_more_answers_than_letters_cannot_be_ranked(store: Store) -> None:
    store.append([Q, *(Completion(Q.id, f"answer {i}") for i in range(27))], "d")
    step = Judge(judge="judge", how="listwise")
    with pytest.raises(DataError, match="27 answers, listwise ranks at most 26: use pairwise"):
        list(flow.made(store, step, "d", [], {"judge": Scripted().open()}, Random(0)))


def test_a_spec_names_the_engine_that_it_lacks(tmp_path: Path) -> None:
    from factory.errors import SpecError
    from factory.spec import load_spec

    spec = "name: x\nengines: {a: {use: scripted}}\nstages:\n- {import: s.jsonl, into: s}\n"
    spec += "- {generate: preference_pairs, from: s, into: p, with: {engine: [a], judge: [a, jugde]}}\n"
    (tmp_path / "spec.yaml").write_text(spec)
    with pytest.raises(SpecError, match="no engine 'jugde'"):
        load_spec(tmp_path / "spec.yaml")


def test_a_spec_goes_from_prompts_to_audited_and_exported_pairs_and_is_not_done_twice(tmp_path: Path) -> None:
    import json

    from factory.run import run
    from factory.spec import load_spec

    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in PROMPTS))
    spec = {
        "name": "pairs",
        "engines": {
            "writer": {"use": "scripted", "model": "writer", "replies": {"^Add|^\\d加": ANSWERS}},
            "judge": {"use": "scripted", "model": "judge", "replies": KNOWS, "shuffle": 9},
        },
        "stages": [
            {"import": "asked.jsonl", "into": "asked"},
            {
                "generate": "preference_pairs",
                "from": "asked",
                "into": "d",
                "with": {"engine": "writer", "judge": "judge"},
            },
            {
                "generate": "judge",
                "from": "d",
                "into": "d",
                "with": {"judge": "judge", "criterion": "Which is kinder?"},
            },
            {"audit": ["both_sides_differ", "no_orphans", "lineage_unbroken", "calls_verified"]},
            {"export": "d", "kind": "pairs", "to": str(tmp_path / "out"), "for": "trl"},
        ],
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec, ensure_ascii=False))
    store, told = Store(tmp_path / "s.duckdb"), list[str]()
    run(load_spec(tmp_path / "spec.yaml"), store, told.append)
    calls = store.rows("SELECT count(*) FROM calls")
    assert store.rows("SELECT count(DISTINCT rubric) FROM judgements") == [(2,)]
    pairs = store.rows("SELECT count(*), min(votes), bool_and(chosen <> rejected) FROM pairs")
    assert pairs[0][0] > 10
    assert pairs[0][1:] == (2, True)
    told.clear()
    run(load_spec(tmp_path / "spec.yaml"), store, told.append)
    assert sum("done before, skipped" in line for line in told) == 4
    assert store.rows("SELECT count(*) FROM calls") == calls
