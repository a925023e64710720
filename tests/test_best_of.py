"""`best_of`: best-of-n and RSO by any reward; every sample a row, every rejection with its reward and reason."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.errors import EngineError, SpecError
from factory.records import Completion, Judgement, Metric, Prompt, Record, Verdict, user
from factory.run import run
from factory.spec import load_spec
from factory.store import Store
from generators.best_of import PUBLISHED, BestOf, accepted, best, tilted_kl
from tests.specs_help import CONTENT

PROMPTS = [
    Prompt(user("Say a number."), language="en", meta={"answer": "3"}),
    Prompt(user("说一个数字。"), language="zh", meta={"answer": "三"}),
    Prompt(user("Say another."), language="en", meta={"answer": "99"}),
]
SAYS = {"Say": [str(i) for i in range(10)], "说": list("一二三四五六七八九十")}
# The judge's score is the digit's own, up to 5; it cannot read six, and likes the greater of two.
JUDGE = {
    r"^You rate.*answer\n([1-5])\n": r"Score: \1",
    r"^You rate.*answer\n[789]\n": "Score: 5",
    r"^You rate.*answer\n0\n": "Score: 1",
    "^请只就": "评分：2",
    **{rf"^You compare.*answer A\n{a}\n.*answer B\n[0-{a}]\n": "Verdict: A" for a in range(10)},
    "^You compare": "Verdict: B",
    "^请比较": "裁决：平局",
}


def _engines(**faults: object) -> dict[str, Engine]:
    said = Scripted(**{"model": "m", "replies": SAYS} | faults).open()  # type: ignore[arg-type]
    return {"e": said, "j": Scripted(model="judge", replies=JUDGE).open()}


def _run(
    prompts: Sequence[Prompt] = PROMPTS, engines: dict[str, Engine] | None = None, **options: object
) -> list[Record]:
    step = BestOf(**{"engine": "e", "n": 12, "reward": {"rule": "exact"}} | options)  # type: ignore[arg-type]
    return list(step.generate(prompts, engines or _engines(), Random(4)))


def _reasons(records: list[Record]) -> Counter[str]:
    return Counter(r.reason for r in records if isinstance(r, Verdict))


def _metrics(records: list[Record]) -> dict[str, float]:
    return {r.name.split("/")[-1]: r.value for r in records if isinstance(r, Metric)}


def _kept(records: list[Record]) -> dict[str, list[str]]:
    """The kept texts by prompt."""
    kept = {r.record_id for r in records if isinstance(r, Verdict) and r.keep}
    found: dict[str, list[str]] = {}
    for r in records:
        if isinstance(r, Completion) and r.id in kept:
            found.setdefault(r.prompt_id, []).append(r.text)
    return found


def test_the_best_is_kept_and_every_sample_is_a_row_with_its_reward() -> None:
    records = _run(n=40)
    kept = _kept(records)
    assert (kept[PROMPTS[0].id], kept[PROMPTS[1].id]) == (["3"], ["三"])
    samples = [r for r in records if isinstance(r, Completion)]
    rewards = {r.completion_id: r for r in records if isinstance(r, Judgement) and not r.other_id}
    verdicts = {r.record_id: r for r in records if isinstance(r, Verdict)}
    assert len({s.id for s in samples}) == 120
    assert set(rewards) == set(verdicts) == {s.id for s in samples}
    golds = {p.id: p.meta["answer"] for p in PROMPTS}
    for sample in samples:
        assert rewards[sample.id].score == float(sample.text == golds[sample.prompt_id])
        assert rewards[sample.id].judge_kind == "rule"
        verdict = verdicts[sample.id]
        assert verdict.keep or (verdict.reason, verdict.score) == ("not_best", rewards[sample.id].score)
    assert _reasons(records) == {"": 3, "not_best": 117}


def test_best_and_worst_make_a_pair_that_the_store_shows(store: Store) -> None:
    records = _run(n=40)
    store.append(records, "d")
    assert store.rows("SELECT prompt, chosen, rejected <> chosen, margin FROM pairs ORDER BY prompt DESC") == [
        ("说一个数字。", "三", True, 1.0), ("Say a number.", "3", True, 1.0),
    ]  # fmt: skip
    assert len(store.rows("FROM sft")) == 3, "rejected samples are no training rows"
    assert store.rows("SELECT count(*) FROM rankings WHERE len(scores) = 40") == [(3,)]
    assert store.rows("SELECT DISTINCT measure, n FROM yield WHERE measure = 'sampled'") == [("sampled", 120)]
    assert store.rows("SELECT DISTINCT stage FROM yield") == [("best_of",)], "its verdicts are no filter's"


def test_where_all_rewards_are_equal_there_is_no_pair() -> None:
    records = _run(PROMPTS[2:], n=8)
    assert not [j for j in records if isinstance(j, Judgement) and j.other_id]
    assert sum(map(len, _kept(records).values())) == 1


# --- the choice ------------------------------------------------------------------------------------------------------


def _published(candidates: dict[str, float], keep: int, beta: float, rng: Random) -> list[str]:
    """RSO's own code (Liu et al. 2023, appendix A.1), with its random numbers from `rng`."""
    candidates, found = dict(candidates), list[str]()
    while len(found) < keep:
        highest, gone = max(candidates.values()), []
        for text, reward in candidates.items():
            if rng.random() >= math.exp((reward - highest) / beta):
                continue
            found.append(text)
            gone.append(text)
            if len(found) == keep:
                break
        for text in gone:
            candidates.pop(text)
    return found


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_rso_accepts_what_the_published_code_accepts(beta: float) -> None:
    draw = Random(beta)
    for seed in range(50):
        scores = [draw.gauss(0, 1) for _ in range(64)]
        wanted = _published({str(i): s for i, s in enumerate(scores)}, 8, beta, Random(seed))
        assert [str(i) for i in accepted(scores, 8, beta, Random(seed))] == wanted


def test_accepted_samples_follow_the_optimal_policy() -> None:
    """30 % of samples have reward 1, the others 0: pi(1) = 0.3 e^2 / (0.3 e^2 + 0.7) = 0.76 at beta 0.5."""
    rng, hits = Random(1), 0
    for _ in range(3000):
        scores = [float(rng.random() < 0.3) for _ in range(64)]
        hits += scores[accepted(scores, 1, 0.5, rng)[0]] == 1.0
    assert hits / 3000 == pytest.approx(0.76, abs=0.025)


def test_beta_goes_from_the_best_to_the_first() -> None:
    scores = [0.1, 0.9, 0.5, 0.8]
    assert set(accepted(scores, 2, 1e-3, Random(0))) == {1, 3} == set(best(scores, 2))
    assert accepted(scores, 2, 1e9, Random(0)) == [0, 1]
    assert sorted(accepted(scores, 9, 0.5, Random(0))) == [0, 1, 2, 3], "it ends when no sample is left"


def test_divergences_worked_by_hand() -> None:
    assert tilted_kl([2.0, 2.0, 2.0], 0.5) == pytest.approx(0.0)
    assert tilted_kl([0.0, 0.0, 0.0, 50.0], 0.5) == pytest.approx(math.log(4))
    w = math.exp(2) / (math.exp(2) + 1)
    assert tilted_kl([0.0, 1.0], 0.5) == pytest.approx(w * math.log(2 * w) + (1 - w) * math.log(2 * (1 - w)))
    counts = _metrics(_run(n=8))
    assert counts["kl_bound"] == pytest.approx(math.log(8) - 7 / 8)
    assert PUBLISHED["kl_bound"][0] == pytest.approx(3.1745, abs=1e-3)


def test_rso_keeps_eight_and_pairs_neighbours_by_reward(store: Store) -> None:
    records = _run(PROMPTS[:1], n=64, method="rso", reward={"sql": "completion::INT"}, beta=2.0)
    assert (_reasons(records)[""], _reasons(records)["not_accepted"]) == (8, 56)
    score = {j.completion_id: j.score for j in records if isinstance(j, Judgement) and not j.other_id}
    pairs = [j for j in records if isinstance(j, Judgement) and j.other_id]
    assert len(pairs) == 4
    for pair in pairs:
        assert pair.verdict == ("win" if score[pair.completion_id] > score[pair.other_id] else "tie")  # type: ignore[operator]
    assert len({id for p in pairs for id in (p.completion_id, p.other_id)}) == 8
    store.append(records, "d")
    shown = store.rows("SELECT chosen::INT > rejected::INT, margin > 0 FROM pairs")
    assert shown == [(True, True)] * sum(p.verdict == "win" for p in pairs)
    counts = _metrics(records)
    assert counts["reward_kept"] > counts["reward_mean"]
    assert 0 < counts["kl_estimate"] < math.log(64)
    assert counts["accept_rate"] == PUBLISHED["accept_rate"][0]


@pytest.mark.parametrize(("how", "number"), [("tournament", 7), ("first_round", 4), ("best_worst", 1), ("none", 0)])
def test_each_way_to_pair_makes_its_number_of_pairs(how: str, number: int) -> None:
    records = _run(PROMPTS[:1], n=64, method="rso", reward={"sql": "completion::INT"}, beta=2.0, pairs=how)
    assert len([j for j in records if isinstance(j, Judgement) and j.other_id]) == number


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_a_judge_scores_each_text_once_and_its_rows_are_the_rewards() -> None:
    engines = _engines()
    records = _run(PROMPTS[:2], engines, n=30, reward={"judge": "j", "aspects": ["helpfulness", "style"]})
    scores = [j for j in records if isinstance(j, Judgement) and not j.other_id]
    said = {r.id: r.text for r in records if isinstance(r, Completion)}
    assert {(j.judge, j.judge_kind, j.aspect) for j in scores} == {
        ("judge", "model", "helpfulness"), ("judge", "model", "style"),
    }  # fmt: skip
    assert all(said[t] in "56789" for t in (r.record_id for r in records if isinstance(r, Verdict) and r.keep)
               if said[t].isascii())  # fmt: skip
    unread = [v for v in records if isinstance(v, Verdict) and v.reason == "judge_unreadable"]
    assert {said[v.record_id] for v in unread} == {"6"}
    assert len(unread) == Counter(said.values())["6"], "every copy of what cannot be scored has its verdict"


def test_a_knock_out_finds_the_one_that_beats_all_others() -> None:
    records = _run(PROMPTS[:1], n=40, reward={"judge": "j", "way": "tournament"})
    assert _kept(records) == {PROMPTS[0].id: ["9"]}
    votes = [j for j in records if isinstance(j, Judgement) and j.other_id and j.judge == "judge"]
    assert len(votes) == 2 * 9, "ten texts make nine matches, each in both orders"
    assert {j.judge for j in records if isinstance(j, Judgement) and not j.other_id} == {"judge:j"}


@pytest.mark.parametrize(
    ("replies", "faults", "reason"),
    [
        ("I cannot judge these.", {}, "judge_unreadable"),
        ("Verdict: A", {"error_every": 1}, "judge_engine_error"),
        ("Verdict: A", {"truncate_every": 1}, "judge_truncated"),
    ],
)
def test_a_knock_out_that_nobody_could_read_rewards_nobody(
    replies: str, faults: dict[str, int], reason: str, store: Store
) -> None:
    judge = Scripted(model="judge", replies={".": replies}, **faults).open()  # type: ignore[arg-type]
    records = _run(PROMPTS[:1], _engines() | {"j": judge}, n=8, reward={"judge": "j", "way": "tournament"})
    assert [v.reason for v in records if isinstance(v, Verdict) and v.reason.startswith("judge_")] == [reason] * 8
    answers = {r.id for r in records if isinstance(r, Completion)}
    verdicts = {v.record_id: v for v in records if isinstance(v, Verdict)}
    for answer in answers:
        assert verdicts[answer].reason == reason
        assert verdicts[verdicts[answer].evidence_id].text == verdicts[answer].text, "the call that failed is named"
    assert not [j for j in records if isinstance(j, Judgement) and (j.score is not None or j.verdict == "win")]
    store.append(records, "d")
    assert store.rows("SELECT count(*) FROM pairs") == [(0,)] == store.rows("SELECT count(*) FROM sft")


@pytest.mark.parametrize("said", ["Verdict: A", "Verdict: tie"])
def test_a_knock_out_without_a_decided_match_makes_no_order(said: str) -> None:
    judge = Scripted(model="judge", replies={".": said}).open()
    records = _run(PROMPTS[:1], _engines() | {"j": judge}, n=40, reward={"judge": "j", "way": "tournament"})
    rewards = [j for j in records if isinstance(j, Judgement) and not j.other_id]
    assert len({j.completion_id for j in rewards}) == 40
    assert {(j.score, j.rationale) for j in rewards} == {(0.0, "0 of 4 rounds won")}, "going on by lot is no win"
    assert not [j for j in records if isinstance(j, Judgement) and j.other_id and j.judge != "judge"], "no pair"


def test_a_knock_out_loses_only_answers_whose_own_matches_could_not_be_read() -> None:
    judge = Scripted(model="judge", replies={"answer [AB]\n3\n": "I cannot judge these.", **JUDGE}).open()
    records = _run(PROMPTS[:1], _engines() | {"j": judge}, n=40, reward={"judge": "j", "way": "tournament"})
    said = {r.id: r.text for r in records if isinstance(r, Completion)}
    lost = {said[v.record_id] for v in records if isinstance(v, Verdict) and v.reason == "judge_unreadable"}
    assert "3" in lost
    assert len(lost) <= 2, "3, and whom it met"
    assert _kept(records) == {PROMPTS[0].id: ["9"]}


def test_several_rewards_make_one() -> None:
    reward = [{"sql": "completion::INT"}, {"rule": "exact", "weight": 100}]
    assert _kept(_run(PROMPTS[:1], n=40, reward=reward)) == {PROMPTS[0].id: ["3"]}
    opinion = next(r for r in _run(PROMPTS[:1], n=4, reward=reward) if isinstance(r, Judgement))
    assert opinion.judge == "sum(sql:completion::INT, 100 rule:exact)"
    assert "rule:exact 0" in opinion.rationale


def test_a_function_of_ones_own_and_missing_scores(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "def score(prompts, completions):\n    return [None if c == '5' else -ord(c) for c in completions]\n"
    )
    records = _run(PROMPTS[:1], n=40, reward={"python": f"{tmp_path}/r.py:score"})
    assert _kept(records) == {PROMPTS[0].id: ["0"]}
    assert _reasons(records)["no_score"] > 0
    assert _metrics(records)["rated"] == 40 - _reasons(records)["no_score"]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"error_every": 4}, "engine_error"),
        ({"truncate_every": 4}, "truncated"),
        ({"replies": {".": " "}}, "unreadable"),
    ],
)
def test_every_failed_cut_or_empty_sample_is_a_row(fault: dict[str, object], reason: str) -> None:
    records = _run(engines=_engines(**fault), n=8)
    lost, samples = _reasons(records)[reason], sum(isinstance(r, Completion) for r in records)
    assert (lost, samples) == ((24, 0) if reason == "unreadable" else (6, 18))
    assert len([r for r in records if isinstance(r, Prompt)]) == 3, "a prompt without a sample stays"
    assert _metrics(records)["whole"] == samples
    assert all(
        v.evidence_id in {p.id for p in PROMPTS} for v in records if isinstance(v, Verdict) and v.reason == reason
    )


def test_a_judge_that_fails_costs_the_score_of_its_own_answer_alone() -> None:
    judge = Scripted(model="judge", replies=JUDGE, error_every=3).open()
    records = _run(PROMPTS[:1], _engines() | {"j": judge}, n=40, reward={"judge": "j"})
    said = {r.id: r.text for r in records if isinstance(r, Completion)}
    lost = {said[v.record_id] for v in records if isinstance(v, Verdict) and v.reason == "judge_engine_error"}
    scored = {said[j.completion_id] for j in records if isinstance(j, Judgement) and not j.other_id}
    assert len(lost) == 3
    assert not lost & scored
    assert len(_kept(records)[PROMPTS[0].id]) == 1


def test_scores_that_could_be_read_are_kept_beside_those_that_could_not() -> None:
    judge = Scripted(model="judge", replies={"(?i)alone\\.\\s+helpful": "Score: 4", ".": "I cannot say."}).open()
    reward = {"judge": "j", "aspects": ["helpfulness", "honesty", "style"]}
    records = _run(PROMPTS[:1], _engines() | {"j": judge}, n=1, reward=reward)
    [answer] = [r for r in records if isinstance(r, Completion)]
    told = [(j.aspect, j.score, j.verdict) for j in records if isinstance(j, Judgement)]
    assert told == [("helpfulness", 4.0, None), ("honesty", None, "invalid"), ("style", None, "invalid")]
    verdicts = [v for v in records if isinstance(v, Verdict)]
    assert [(v.reason, v.text) for v in verdicts] == [
        ("judge_unreadable", "I cannot say."), ("unreadable", "I cannot say."), ("unreadable", "I cannot say."),
    ]  # fmt: skip
    assert verdicts[0].record_id == answer.id
    assert verdicts[0].evidence_id == verdicts[1].record_id != verdicts[2].record_id


def test_a_run_whose_engine_died_goes_on_where_it_was_and_ends_like_one_that_lived(tmp_path: Path) -> None:
    rows = [{"prompt": p.text, "answer": p.meta["answer"]} for p in PROMPTS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def done(store: Store, die_after: int) -> None:
        spec = _spec(tmp_path, "{judge: j}", f"model: m, die_after: {die_after}")
        run(load_spec(spec), store, lambda line: None)

    killed, whole = Store(tmp_path / "killed.duckdb"), Store(tmp_path / "whole.duckdb")
    with pytest.raises(EngineError, match="died after 20"):
        done(killed, 20)
    assert killed.rows("SELECT count(*) FROM calls") == [(20,)], "what was answered is kept"
    done(killed, 0)
    done(whole, 0)
    for sql in (*CONTENT.values(), "SELECT * EXCLUDE (run_id, created_at) FROM judgements ORDER BY rowid"):
        assert killed.rows(sql) == whole.rows(sql)
    assert killed.rows('SELECT count(*) - count(DISTINCT "key") FROM calls') == [(0,)], "nothing was asked twice"


def test_neither_the_wave_nor_the_order_of_replies_nor_other_prompts_change_a_row() -> None:
    options = {"n": 9, "method": "rso", "keep": 3, "reward": {"judge": "j"}}
    whole = _run(**options)
    assert _run(engines=_engines(shuffle=5), **options) == whole
    rows = [r for r in whole if not isinstance(r, Metric)]
    assert [r for r in _run(wave=1, **options) if not isinstance(r, Metric)] == rows
    alone = [r for r in _run(PROMPTS[1:2], **options) if not isinstance(r, Metric)]
    assert alone == [r for r in rows if r in alone]


# --- in a spec -------------------------------------------------------------------------------------------------------


def _spec(folder: Path, reward: str, engine: str = "model: m") -> Path:
    path, replies = folder / "s.yaml", json.dumps(SAYS, ensure_ascii=False)
    path.write_text(
        f"name: s\nengines:\n  e: {{use: scripted, {engine}, replies: {replies}}}\n"
        f"  j: {{use: scripted, model: judge, replies: {json.dumps(JUDGE, ensure_ascii=False)}}}\n"
        "stages:\n  - {import: p.jsonl, into: p}\n"
        f"  - {{generate: best_of, from: p, into: out, with: {{engine: e, n: 16, reward: {reward}}}}}\n"
    )
    return path


def test_a_spec_is_checked_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def f(prompts, completions):\n    return [0.0 for _ in prompts]\n")
    assert load_spec(_spec(tmp_path, "{python: 'r.py:f'}")).name == "s"
    for reward, said in (
        ("{judge: f}", "line 7: no engine 'f'"), ("{model: '@rm'}", "line 7: no earlier train stage"),
        ("{rule: exakt}", "line 7: reward rule"), ("{sql: 'wrods'}", "line 7: reward sql"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            load_spec(_spec(tmp_path, reward))


def test_calls_are_estimated_with_the_judges() -> None:
    step = BestOf(engine="e", n=8, reward=[{"judge": "j"}, {"rule": "exact"}])  # type: ignore[arg-type]
    assert step.calls(10) == 160
    assert BestOf(engine="e", n=8, reward={"judge": "j", "way": "tournament"}).calls(1) == 8 + 14  # type: ignore[arg-type]
    guided = {"judge": "j", "reference": True}
    assert BestOf(engine="e", n=8, reward=guided).calls(10) == 170  # type: ignore[arg-type]
    both = [guided, guided | {"way": "tournament"}]
    assert BestOf(engine="e", n=8, reward=both).calls(1) == 8 + 8 + 14 + 1, "one answer of its own serves both"  # type: ignore[arg-type]
