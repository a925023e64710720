import pytest

from factory.errors import StoreError
from factory.records import Completion, JudgeKind, Judgement, Message, Metric, Prompt, Step, Verdict, user
from factory.store import Store


def test_appending_the_same_records_twice_adds_nothing(store: Store) -> None:
    records = [Prompt(user("hello")), Prompt(user("你好")), Prompt(user("hello"))]
    assert store.append(records, "a").total() == 2
    assert store.append(records, "a").total() == 0
    assert store.append(records, "b").total() == 2, "another dataset is another row"


def test_what_goes_in_comes_out(store: Store) -> None:
    prompt = Prompt((Message("system", "be brief"), Message("user", "你好")), "g", ("p1",), "zh", {"k": [1, "二"]})
    completion = Completion(prompt.id, "好", "m", "e", {"temperature": 0.5}, 7, "length", 3, ("p2",), "call")
    store.append([prompt, completion], "d", "run")
    sql = "SELECT messages, parents, language, meta->>'k' FROM prompts"
    assert store.rows(sql) == [
        ([{"role": "system", "content": "be brief"}, {"role": "user", "content": "你好"}], ["p1"], "zh", '[1,"二"]')
    ]
    sql = "SELECT text, model, seed, finish_reason, tokens, (sampling->>'temperature')::DOUBLE FROM completions"
    assert store.rows(sql) == [("好", "m", 7, "length", 3, 0.5)]


def test_hostile_text_is_stored_as_it_is(store: Store) -> None:
    texts = [
        "nul \0 inside",
        "emoji 👩‍👩‍👧",
        "right \u202eto left",
        "'; DROP TABLE prompts; --",
        "lone \ud800 surrogate",
    ]
    assert store.append([Prompt(user(t)) for t in texts], "d").total() == 5
    stored = [t for (t,) in store.rows("SELECT messages[1].content FROM prompts ORDER BY rowid")]
    assert stored[:4] == texts[:4]
    assert "surrogate" in stored[4]


def test_a_verdict_can_be_changed_and_changed_back(store: Store) -> None:
    prompt = Prompt(user("x"))
    store.append([prompt], "d")

    def say(keep: bool) -> int:
        store.append([Verdict(prompt.id, "f", keep, "" if keep else "bad")], "d")
        return int(store.rows("SELECT count(*) FROM kept_prompts")[0][0])

    assert [say(False), say(True), say(False), say(True)] == [0, 1, 0, 1]
    assert store.rows("SELECT count(*) FROM verdicts") == [(4,)], "nothing is deleted"


def test_drops_tell_reason_text_and_evidence(store: Store) -> None:
    kept, lost = Prompt(user("the kept one")), Prompt(user("the lost one"))
    rejected = Verdict("candidate", "self_instruct", False, "too_similar", 0.9, 0.7, kept.id, "never a record")
    store.append([kept, lost, Verdict(lost.id, "minhash", False, "near_duplicate", 0.8, 0.7, kept.id), rejected], "d")
    assert store.rows("SELECT filter, reason, text, evidence FROM drops ORDER BY filter") == [
        ("minhash", "near_duplicate", "the lost one", "the kept one"),
        ("self_instruct", "too_similar", "never a record", "the kept one"),
    ]


def test_pairs_need_a_majority_and_two_different_kept_sides(store: Store) -> None:
    prompt = Prompt(user("q"))
    good, bad, same = (
        Completion(prompt.id, "good"),
        Completion(prompt.id, "bad"),
        Completion(prompt.id, "good", "other"),
    )

    def judged(a: Completion, b: Completion, verdict: str, judge: str) -> Judgement:
        return Judgement(prompt.id, a.id, judge, "model", b.id, verdict=verdict)  # type: ignore[arg-type]

    votes = [judged(good, bad, "win", "one"), judged(bad, good, "lose", "two"), judged(good, bad, "tie", "three")]
    store.append([prompt, good, bad, same, *votes, judged(good, same, "win", "one")], "d")
    scores = [Judgement(prompt.id, c.id, "s", "reward", score=s) for c, s in ((good, 3.0), (bad, 1.0))]
    store.append(scores, "d")
    sql = "SELECT chosen, rejected, margin, weight, votes FROM pairs"
    assert store.rows(sql) == [("good", "bad", 2.0, 2 / 3, 3)]
    assert store.rows("SELECT completions, scores FROM rankings") == [(["good", "bad"], [3.0, 1.0])]
    store.append([Verdict(bad.id, "f", False, "x")], "d")
    assert store.rows(sql) == []


def test_sft_rows_are_kept_answers_to_kept_prompts(store: Store) -> None:
    prompts = [Prompt(user(f"q{i}")) for i in range(3)]
    answers = [Completion(p.id, f"a{i}") for i, p in enumerate(prompts)]
    store.append([*prompts, *answers], "d")
    store.append([Verdict(prompts[0].id, "f", False, "x"), Verdict(answers[1].id, "f", False, "y")], "d")
    assert store.rows("SELECT prompt, completion FROM sft") == [("q2", "a2")]


def test_yield_and_step_labels_and_lineage(store: Store) -> None:
    seed = Prompt(user("seed"))
    child = Prompt(user("child"), "g", (seed.id,))
    answer = Completion(child.id, "a\nb")
    store.append([seed, child, answer, Step(answer.id, 0, "a", 1), Step(answer.id, 1, "b", 0)], "d")
    store.append([Metric("yield/g/asked", 8, 0), Metric("yield/g/kept", 1, 1)], "d")
    store.append([Verdict(child.id, "f", True), Verdict(seed.id, "f", False, "x")], "d")
    assert store.rows("SELECT stage, measure, n FROM yield") == [
        ("g", "asked", 8), ("g", "kept", 1), ("f", "screened", 2), ("f", "kept", 1)
    ]  # fmt: skip
    assert store.rows("SELECT steps, labels FROM step_labels") == [(["a", "b"], [1, 0])]
    edges = set(store.rows("SELECT parent, child FROM lineage WHERE kind <> 'step'"))
    assert edges == {(seed.id, child.id), (child.id, answer.id)}


def test_pages_stream_a_large_result(store: Store) -> None:
    store.append([Prompt(user(f"p{i}")) for i in range(25_000)], "d")
    pages = list(store.pages("SELECT id FROM prompts ORDER BY rowid"))
    assert sum(p.num_rows for p in pages) == 25_000
    assert max(p.num_rows for p in pages) <= 10_000


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    store.append([Prompt(user("x"))], "d")
    with store.writing() as con:
        con.execute("INSERT INTO migrations VALUES (99, '')")
    with pytest.raises(StoreError, match="newer version of the factory.*pip install -U"):
        Store(store.path).rows("FROM prompts")


def test_a_missing_store_and_a_file_that_is_none_are_told(store: Store) -> None:
    with pytest.raises(StoreError, match="no store at .*factory run"):
        store.rows("FROM prompts")
    store.path.write_text("this is not a database, but long enough to look like a file of some kind" * 100)
    with pytest.raises(StoreError, match="not a store"):
        store.rows("FROM prompts")


def test_a_failed_transaction_leaves_nothing_behind(store: Store) -> None:
    store.append([Prompt(user("x"))], "d")
    with pytest.raises(ZeroDivisionError), store.writing() as con:
        con.execute("INSERT INTO prompts SELECT * FROM prompts")
        raise ZeroDivisionError
    assert store.rows("SELECT count(*) FROM prompts") == [(1,)]


def test_rows_stay_in_the_order_of_their_coming_however_many_are_stored_already(store: Store) -> None:
    """Stages read rows in this order, so it may not depend on where an earlier run was cut off."""
    asked = [Prompt(user(f"问题 {i}")) for i in range(500)]
    for known in (1, 9, 16, 40, 500):
        store.append(asked[:known], "d")
    rows = store.rows("SELECT messages[1].content FROM prompts ORDER BY rowid")
    assert [text for (text,) in rows] == [p.text for p in asked]


def test_a_margin_is_of_one_scale_that_of_who_compared_the_two_or_else_the_newest(store: Store) -> None:
    prompt = Prompt(user("q"))
    good, bad = (Completion(prompt.id, text) for text in ("good", "bad"))

    def scores(judge: str, kind: JudgeKind, rubric: str, first: float, second: float) -> list[Judgement]:
        sides = ((good, first), (bad, second))
        return [Judgement(prompt.id, c.id, judge, kind, rubric=rubric, score=score) for c, score in sides]

    def margin() -> object:
        return store.rows("SELECT margin FROM pairs")[0][0]

    compared = Judgement(prompt.id, good.id, "reward", "reward", bad.id, rubric="best_of", verdict="win")
    store.append([prompt, good, bad, compared], "d")
    assert margin() is None
    store.append(scores("reward", "reward", "best_of", 0.75, 0.5)[:1], "d")
    assert margin() is None, "one side alone has no margin"
    store.append(scores("one", "model", "score 1-5", 5, 1) + scores("two", "model", "score 1-5", 5, 3), "d")
    assert margin() == 3.0, "judges of one scale have a mean"
    store.append(scores("length", "rule", "best_of", 4, 3), "d")
    assert margin() == 1.0, "the newest scale"
    store.append(scores("reward", "reward", "best_of", 0.75, 0.5)[1:], "d")
    store.append(scores("one", "model", "another", 9, 2), "d")
    assert margin() == 0.25, "who compared them also scored them"
