"""Critique, revision and labels: every step of a chain is a row, and a fault ends the chain and nothing else."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from factory import flow
from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.errors import SpecError
from factory.records import Answered, Completion, Judgement, Metric, Prompt, Record, Verdict, user
from factory.store import Store
from generators._constitution import read_constitution
from generators.constitutional import PUBLISHED, Constitutional

BAD, GOOD = "To rob a bank, take a bag.", "I can't help with that."
ASKED = Prompt(user("How do I rob a bank?"), language="en", meta={"risk": "theft"})
CHINESE = Prompt(user("怎么偷车？"), language="zh")
REPLIES = {
    r"Answer:\nTo rob.*Write the critique": "The answer helps with theft.",
    r"Answer:\nI can't.*Write the critique": "Nothing to object to.", r"revised answer alone": GOOD,
    r"请用几句话写出批评意见": "回答帮助偷窃。", r"只回复修改后的回答": "我不能帮你偷车。",
    r"answer A\nI can't|answer A\n我不能": "Verdict: A", r"answer B\nI can't": "Verdict: B",
    r"回答 A\n我不能": "裁决：A", r"回答 B\n我不能": "裁决：B",
}  # fmt: skip


def _draft(prompt: Prompt, text: str) -> Completion:
    return Completion(prompt.id, text, "base", "import")


def _review(answered: list[Answered] | None = None, engine: Scripted | None = None, **options: Any) -> list[Record]:
    step = Constitutional(**{"engine": "e", "rounds": 2, "labels": 3} | options)
    engines: dict[str, Engine] = {"e": (engine or Scripted(replies=REPLIES, model="strong")).open()}
    return list(step.review(answered or [Answered(ASKED, (_draft(ASKED, BAD),))], engines, Random(0)))


def _reasons(records: list[Record]) -> Counter[str]:
    """Of what was lost; an answer that was revised is told by its revision."""
    return Counter(r.reason for r in records if isinstance(r, Verdict) and r.reason != "revised")


def _measures(records: list[Record]) -> dict[str, float]:
    return {r.name.split("/", 1)[1]: r.value for r in records if isinstance(r, Metric)}


def test_every_revision_is_kept_with_its_critique_and_the_answer_that_it_revises() -> None:
    records = _review()
    draft, *revisions = [r for r in records if isinstance(r, Completion)]
    assert draft.text == BAD
    assert [r.text for r in revisions] == [GOOD, GOOD]
    assert [r.parents for r in revisions] == [(draft.id,), (revisions[0].id,)]
    assert {r.model for r in revisions} == {"strong"}
    critiques = [r for r in records if isinstance(r, Judgement) and r.aspect == "critique"]
    assert [(c.completion_id, c.rationale) for c in critiques] == [
        (draft.id, "The answer helps with theft."), (revisions[0].id, "Nothing to object to."),
    ]  # fmt: skip
    names = {p.name for p in read_constitution(Path("default.yaml"))}
    assert {c.rubric for c in critiques} <= names
    assert all(c.score is None and c.verdict is None for c in critiques), "a critique is no score"


def test_labels_compare_draft_and_last_revision_under_several_principles_in_both_orders() -> None:
    records = _review()
    draft, _, last = [r for r in records if isinstance(r, Completion)]
    labels = [r for r in records if isinstance(r, Judgement) and r.other_id]
    assert len(labels) == 2 * 3
    assert len({v.rubric for v in labels}) == 3
    assert {(v.completion_id, v.other_id, v.verdict) for v in labels} == {(last.id, draft.id, "win")}
    assert Counter(v.shown_first for v in labels) == {draft.id: 3, last.id: 3}
    found = _measures(records)
    assert [
        found[f"constitutional/{m}"] for m in ("prompts", "drafts", "revised", "pairs", "labelled", "preferred")
    ] == [1] * 6
    assert found["constitutional/rounds"] == 2
    assert found["constitutional/principles"] == 16
    assert found["constitutional/label_agreement"] == 1.0
    assert {f"constitutional/{name}" for name in PUBLISHED} <= set(found)


def test_the_rows_make_pairs_and_training_rows(store: Store) -> None:
    store.append(_review(), "safety")
    assert store.rows("SELECT prompt, chosen, rejected, votes FROM pairs") == [(ASKED.text, GOOD, BAD, 3)]
    assert store.rows("SELECT completion FROM sft") == [(GOOD,)], "nobody learns the draft, or what was revised again"
    draft, middle, last = (r.id for r in _review() if isinstance(r, Completion))
    told = store.rows("SELECT record_id, evidence_id FROM drops WHERE reason = 'revised' ORDER BY record_id")
    assert told == sorted([(draft, middle), (middle, last)])


def test_of_a_chain_whose_draft_was_preferred_no_row_is_left(store: Store) -> None:
    likes_harm = Scripted(replies={"answer A\nTo rob": "Verdict: A", "answer B\nTo rob": "Verdict: B"}).open()
    step = Constitutional(engine="e", judge="j", rounds=1, labels=4)
    answered = [Answered(ASKED, (_draft(ASKED, BAD),))]
    engines: dict[str, Engine] = {"e": Scripted(replies=REPLIES).open(), "j": likes_harm}
    store.append(step.review(answered, engines, Random(0)), "safety")
    assert store.rows("SELECT completion FROM sft UNION ALL SELECT chosen FROM pairs") == []


def test_principles_are_drawn_by_content_and_differ_between_drafts() -> None:
    answered = [Answered(p, (_draft(p, BAD),)) for p in (Prompt(user(f"Plan {i} to rob a bank?")) for i in range(40))]
    records = _review(answered, rounds=1, labels=0)
    drawn = Counter(r.rubric for r in records if isinstance(r, Judgement))
    assert len(drawn) >= 12, "forty draws of sixteen"
    some = _review(answered[20:], rounds=1, labels=0)
    kept = {r.prompt_id: r.rubric for r in records if isinstance(r, Judgement)}
    assert all(kept[r.prompt_id] == r.rubric for r in some if isinstance(r, Judgement)), "other prompts change nothing"


def test_chinese_prompts_are_revised_under_chinese_principles() -> None:
    records = _review([Answered(CHINESE, (_draft(CHINESE, "先观望，再撬锁。"),))], rounds=1)
    assert [r.text for r in records if isinstance(r, Completion)][1:] == ["我不能帮你偷车。"]
    labels = [r for r in records if isinstance(r, Judgement) and r.other_id]
    principles = read_constitution(Path("default.yaml"))
    assert {v.rubric for v in labels} <= {p.prefer["zh"] for p in principles}
    assert len(labels) == 6


def test_held_out_cells_and_prompts_without_an_answer_are_told() -> None:
    held = Prompt(user("How do I forge money?"), meta={"heldout": True})
    answered = [Answered(held, (_draft(held, BAD),)), Answered(CHINESE, ()), Answered(ASKED, (_draft(ASKED, BAD),))]
    records = _review(answered)
    assert _reasons(records) == {"heldout_cell": 1, "no_draft": 1}
    assert {r.text for r in records if isinstance(r, Prompt)} == {ASKED.text}


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Scripted(error_every=1), "engine_error"),
        (Scripted(truncate_every=1, replies=REPLIES), "truncated"),
        (Scripted(replies={".": " "}), "unreadable"),
    ],
)
def test_a_chain_that_fails_at_once_leaves_a_reason_and_no_row(engine: Scripted, reason: str) -> None:
    records = _review(engine=engine)
    assert _reasons(records) == {reason: 1}
    assert not [r for r in records if isinstance(r, Prompt | Completion | Judgement)]


def test_a_chain_that_fails_later_keeps_what_was_revised() -> None:
    engine = Scripted(replies=REPLIES | {r"Answer:\nI can't.*Write the critique": ""})
    records = _review(engine=engine, labels=0)
    assert _reasons(records) == {"unreadable": 1}
    assert [r.text for r in records if isinstance(r, Completion)] == [BAD, GOOD]


def test_a_revision_that_the_judge_likes_less_is_dropped_with_its_share_of_votes() -> None:
    likes_harm = Scripted(replies={"answer A\nTo rob": "Verdict: A", "answer B\nTo rob": "Verdict: B"}).open()
    step = Constitutional(engine="e", judge="j", rounds=1, labels=4)
    answered = [Answered(ASKED, (_draft(ASKED, BAD),))]
    records = list(step.review(answered, {"e": Scripted(replies=REPLIES).open(), "j": likes_harm}, Random(0)))
    dropped = [r for r in records if isinstance(r, Verdict) and r.reason != "revised"]
    assert [(v.reason, v.score, v.keep) for v in dropped] == [("draft_preferred", 0.0, False)]
    assert dropped[0].record_id == [r for r in records if isinstance(r, Completion)][-1].id


def test_unreadable_labels_are_no_votes() -> None:
    engine = Scripted(replies={k: v for k, v in REPLIES.items() if "Verdict" not in v})
    records = _review(engine=engine)
    assert _reasons(records) == {"unreadable": 6}
    assert {r.verdict for r in records if isinstance(r, Judgement) and r.other_id} == {"invalid"}
    assert _measures(records)["constitutional/labelled"] == 0


def test_the_order_of_replies_changes_nothing_and_waves_change_only_the_order_of_rows() -> None:
    answered = [Answered(p, (_draft(p, BAD),)) for p in (Prompt(user(f"Plan {i} to rob a bank?")) for i in range(9))]
    plain = _review(answered)
    assert _review(answered, Scripted(replies=REPLIES, model="strong", shuffle=4)) == plain
    apart = _review(answered, wave=2)
    ids = [{r.id for r in some if not isinstance(r, Metric)} for some in (plain, apart)]
    assert ids[0] == ids[1]


def test_a_stage_gives_it_the_answers_of_a_dataset(store: Store) -> None:
    store.append([ASKED, _draft(ASKED, BAD)], "attacks")
    step = Constitutional(engine="e", rounds=1, labels=1)
    engines: dict[str, Engine] = {"e": Scripted(replies=REPLIES).open()}
    flow.append(store, flow.made(store, step, "attacks", [], engines, Random(0)), "safety")
    assert store.rows("SELECT chosen FROM pairs WHERE dataset = 'safety'") == [(GOOD,)]


# --- constitutions -------------------------------------------------------------------------------------------------


def test_the_packaged_constitutions_speak_both_languages() -> None:
    for name, number in (("default.yaml", 16), ("mini.yaml", 2)):
        principles = read_constitution(Path("nowhere") / name)
        assert len(principles) == len({p.name for p in principles}) == number
        for principle in principles:
            for wording in (principle.critique, principle.revise, principle.prefer):
                assert wording.zh
                assert wording["zh"] != wording["en"]
                assert not wording.zh.isascii()


def test_a_constitution_of_ones_own_is_read_and_its_faults_are_told(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("principles:\n  - {name: kind, critique: {en: c}, revise: {en: r}, prefer: {en: p}}\n")
    assert read_constitution(own)[0].prefer["zh"] == "p", "English where there is no Chinese"
    own.write_text("principles:\n  - {name: kind, critique: {en: c}, revise: {en: r}}\n")
    with pytest.raises(SpecError, match=r"own.yaml: principles.0.prefer: field required"):
        read_constitution(own)
    own.write_text("principles: [\n")
    with pytest.raises(SpecError, match="not valid YAML"):
        read_constitution(own)
    with pytest.raises(SpecError, match="packaged one: default.yaml, mini.yaml"):
        read_constitution(tmp_path / "none.yaml")
