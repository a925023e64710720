"""Verdicts by schema: every generator that judges can ask for them, and reads JSON where it did and text where not."""

from random import Random

import pytest

from factory.engines.base import Engine
from factory.engines.scripted import Scripted
from factory.records import Answered, Completion, Judgement, Prompt, Record, Verdict, user
from generators.adversarial import Adversarial
from generators.best_of import BestOf
from generators.constitutional import Constitutional
from generators.weak_to_strong import WeakToStrong

TASK = Prompt(user("Say something good."))
# A judge that is shown the schema's rule answers in JSON; any other question it answers in words.
JUDGE = {
    r"JSON object.*answer A\n[^\n]*good": '{"rationale": "It is good.", "verdict": "A"}',
    r"JSON object.*answer B\n[^\n]*good": '{"rationale": "It is good.", "verdict": "B"}',
    r'JSON object: \{[^}]*"score"': '{"rationale": "fine", "score": 4}',
    "^You check": "A critique.",
    "^You rewrite|^You improve|[Rr]evise": "A good answer.",
    "^Say": "An answer.",
}


def _engine() -> Engine:
    return Scripted(model="j", replies=JUDGE).open()


def _opinions(records: list[Record]) -> list[Judgement]:
    return [r for r in records if isinstance(r, Judgement)]


@pytest.mark.parametrize("structured", [True, False])
def test_weak_to_strong_asks_for_a_schema_and_reads_it(structured: bool) -> None:
    step = WeakToStrong(weak="e", strong="e", structured=structured)
    records = list(step.generate([TASK], {"e": _engine()}, Random(0)))
    compared = [o.verdict for o in _opinions(records) if o.other_id]
    assert compared
    assert (set(compared) == {"win"}) == structured


@pytest.mark.parametrize("structured", [True, False])
def test_a_judge_as_a_reward_scores_by_schema(structured: bool) -> None:
    step = BestOf(engine="e", n=2, reward={"judge": "e", "structured": structured})  # type: ignore[arg-type]
    records = list(step.generate([TASK], {"e": _engine()}, Random(0)))
    assert (4.0 in {o.score for o in _opinions(records)}) == structured
    reasons = {r.reason for r in records if isinstance(r, Verdict)}
    assert ("judge_unreadable" in reasons) != structured


@pytest.mark.parametrize("structured", [True, False])
def test_a_constitution_s_labels_are_read_by_schema(structured: bool) -> None:
    draft = Completion(TASK.id, "An answer.")
    step = Constitutional(engine="e", rounds=1, labels=1, structured=structured)
    records = list(step.review([Answered(TASK, (draft,))], {"e": _engine()}, Random(0)))
    assert any(o.verdict == "win" for o in _opinions(records)) == structured


def test_the_adversarial_jury_takes_the_option() -> None:
    assert Adversarial(engine="e", target="t", judges=("e",), risks=("a",), styles=("b",), structured=True).structured
