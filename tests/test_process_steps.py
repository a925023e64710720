"""Steps and their labels: splitting, searching, rollouts that fail, judges that differ, and the real small models."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from factory import flow
from factory.answers import final_answer, same_answer
from factory.engines.base import Engine, Reply, Request
from factory.engines.journal import Journal
from factory.engines.scripted import Scripted
from factory.engines.transformers import Transformers
from factory.errors import EngineError, SpecError
from factory.formats import records as records_of
from factory.mini.families import ENGLISH
from factory.mini.world import draw, solve, split_of
from factory.records import Answered, Completion, Judgement, Metric, Prompt, Record, Step, Verdict, user
from factory.spec import load_spec, stage_title
from factory.store import Store
from generators._rollouts import Label, Search, settled, wanted
from generators._steps import Style, split, verdict
from generators.process_steps import ProcessSteps
from tests.specs_help import CONTENT, ROOT

APPLES = Prompt(user("Ann has 3 apples, gets 4 and eats 2. How many are left?"), meta={"answer": "5"}, language="en")
PEARS = Prompt(user("Bo has 6 pears, gets 1 and eats 3. How many are left?"), meta={"answer": "#### 4"}, language="en")
RIGHT, WRONG = "3 + 4 = 7\n7 - 2 = 5\nAnswer: 5", "3 + 4 = 7\n7 - 2 = 6\nthat is 6\nAnswer: 6"
GOES_ON = {"= 6\n": "Answer: 6", "= 5\n": "Answer: $5.00", "= 7\n$": ["7 - 2 = 5\nAnswer: 5", "7 - 2 = 6\nAnswer: 6"]}


@dataclass
class Watched:
    """An engine that notes what it is asked: one list of requests for each call of `generate`."""

    engine: Engine
    waves: list[list[Request]] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        wave: list[Request] = []
        self.waves.append(wave)

        def noted() -> Iterator[Request]:
            for request in requests:
                wave.append(request)
                yield request

        return self.engine.generate(noted())

    def close(self) -> None:
        self.engine.close()


def _engine(replies: Mapping[str, str | list[str]], **faults: int) -> Watched:
    return Watched(Scripted(replies=dict(replies), **faults).open())  # type: ignore[arg-type]


def _run(
    solves: str | list[str],
    goes_on: Mapping[str, str | list[str]] | Watched = GOES_ON,
    judges: Mapping[str, str | list[str]] | Watched | None = None,
    prompts: tuple[Prompt, ...] = (APPLES,),
    **options: object,
) -> list[Record]:
    given = {
        "solver": _engine({"Solve this step by step": solves, "一步一步": solves}),
        "goer": goes_on,
        "judge": judges,
    }
    engines = {name: e if isinstance(e, Watched) else _engine(e) for name, e in given.items() if e is not None}
    named = {"engine": "solver", "rollout": "goer"} | ({"judge": "judge"} if judges else {})
    return list(ProcessSteps(**named | options).generate(prompts, engines, Random(0)))  # type: ignore[arg-type]


def _labels(records: list[Record]) -> list[int | None]:
    return [r.label for r in records if isinstance(r, Step)]


def _reasons(records: list[Record]) -> list[str]:
    return [r.reason for r in records if isinstance(r, Verdict)]


def _figures(records: list[Record], kind: str) -> dict[str, float]:
    return {r.name.split("/")[-1]: r.value for r in records if isinstance(r, Metric) and r.name.startswith(kind)}


# --- labels by rollouts ----------------------------------------------------------------------------------------------


def test_a_step_is_right_while_the_answer_can_be_reached_from_it() -> None:
    steps = [r for r in _run(RIGHT, rollouts=16) if isinstance(r, Step)]
    assert [(s.index, s.text, s.label) for s in steps] == [
        (0, "3 + 4 = 7", 1), (1, "7 - 2 = 5", 1), (2, "Answer: 5", 1),
    ]  # fmt: skip
    assert 0 < (steps[0].soft_label or 0) < 1, "some rollouts from there go wrong"
    assert (steps[1].soft_label, steps[1].rollouts) == (1.0, 16), "$5.00 is 5"
    assert (steps[2].soft_label, steps[2].rollouts) == (1.0, 0), "the outcome needs no rollout"


def test_nothing_is_asked_behind_the_first_wrong_step() -> None:
    goer = _engine(GOES_ON)
    records = _run(WRONG, goer, rollouts=8)
    assert _labels(records) == [1, 0, None, None]
    assert [len(wave) for wave in goer.waves] == [8, 8]
    assert [(r.score, r.rationale) for r in records if isinstance(r, Judgement)] == [(0.0, "6 beside 5")]
    assert _labels(_run(WRONG, rollouts=8, search="all")) == [1, 0, 0, 0]


def test_a_rollout_continues_the_prefix_to_the_letter() -> None:
    goer = _engine(GOES_ON)
    _run(WRONG, goer, rollouts=2)
    first = goer.waves[0][0].prompt
    assert [(m.role, m.content) for m in first if not isinstance(m, str)][1:] == [("assistant", "3 + 4 = 7\n")]


def test_the_rollouts_of_all_solutions_are_in_flight_together() -> None:
    goer = _engine({r"\n$": "Answer: 5"})
    solves = [f"3 + 4 = 7\n7 - 2 = 5 and {i} words\nAnswer: 5" for i in range(16)]
    _run(solves, goer, (), (APPLES, PEARS), n=16, rollouts=4)
    assert len(goer.waves) == 2, "one wave for each step, whatever the number of solutions"
    assert len(goer.waves[0]) == 2 * 4, "solutions that begin alike share the rollouts of that beginning"
    assert len(goer.waves[1]) >= 2 * 4 * 5


def test_another_block_size_gives_the_same_rows() -> None:
    def rows(together: int) -> set[str]:
        made = _run([RIGHT, WRONG], prompts=(APPLES, PEARS), n=4, together=together)
        return {r.id for r in made if isinstance(r, Step | Completion)}

    assert rows(1) == rows(256)
    assert len(rows(1)) > 8


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_the_hard_label_follows_the_threshold(threshold: float) -> None:
    goes_on = {"= 7\n$": ["Answer: 5", "Answer: 6"], "= 5\n": "Answer: 5"}
    assert _labels(_run(RIGHT, goes_on, rollouts=64, threshold=threshold))[0] == (1 if threshold == 0 else 0)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_every_rollout_is_a_request_of_its_own_and_a_failed_one_never_labels_a_step_wrong() -> None:
    """distilabel asks for N completions in one reply, compares strings, pads short replies with "" so that a right
    one is erased, and takes a failed call for a wrong step."""
    goer = _engine({"= 7\n$": "Answer: 5.0", "= 5\n": "Answer: 5 apples"}, error_every=4)
    records = _run(RIGHT, goer, rollouts=8)
    assert len({request.id for wave in goer.waves for request in wave}) == 16
    steps = [r for r in records if isinstance(r, Step)]
    assert [(s.label, s.soft_label, s.rollouts) for s in steps] == [(1, 1.0, 6), (1, 1.0, 6), (1, 1.0, 0)]
    failed = [r for r in records if isinstance(r, Verdict)]
    assert [(v.reason, v.text) for v in failed] == [("engine_error", "an error that was asked for")] * 4
    answer = next(r for r in records if isinstance(r, Completion))
    assert {v.evidence_id for v in failed} == {answer.id}


@pytest.mark.parametrize(
    ("replies", "faults", "reason"),
    [
        ("Answer: 5", {"error_every": 1}, "engine_error"),
        ("Answer: 5", {"truncate_every": 1}, "truncated"),
        ("ba ko li mu ne ro ti wa", {}, "no_answer"),
        ("", {}, "unreadable"),
        ("I'm sorry, but I can't help with that.", {}, "refused"),
        ("对不起，我无法帮助你。", {}, "refused"),
    ],
)
def test_a_step_without_any_rollout_has_no_label(replies: str, faults: dict[str, int], reason: str) -> None:
    records = _run(RIGHT, _engine({r"\n$": replies}, **faults), rollouts=3)
    steps = [r for r in records if isinstance(r, Step)]
    assert [(s.label, s.soft_label, s.rollouts) for s in steps] == [(None, None, 0), (None, None, 0), (1, 1.0, 0)]
    assert _reasons(records) == [reason] * 6 + ["unlabelled"] * 2
    assert _figures(records, "yield") == {"asked": 1, "answered": 1, "labelled": 0, "kept": 0}


def test_an_answer_that_a_step_names_on_the_way_is_not_the_rollout_s() -> None:
    solves = "First, the answer is 7 before eating.\n7 - 2 = 5\nAnswer: 5"
    steps = _run(solves, {r"\n$": "Hmm, and then."}, rollouts=3)
    first = next(r for r in steps if isinstance(r, Step))
    assert (first.label, first.soft_label, first.rollouts) == (None, None, 0)
    assert _reasons(steps) == ["no_answer"] * 6 + ["unlabelled"] * 2
    assert {v.text for v in steps if isinstance(v, Verdict) and v.reason == "no_answer"} == {"Hmm, and then."}
    done = _run("7 - 2 = 5\nThe answer is 5.\nAnswer: 5", {r"is 5\.\n$": "", "= 5\n$": "答案：5"}, rollouts=3)
    assert _labels(done) == [1, 1, 1], "a rollout that ends at once leaves the prefix's answer as it is"


@pytest.mark.parametrize(
    ("solves", "faults", "reason"),
    [
        (RIGHT, {"error_every": 1}, "engine_error"),
        (RIGHT, {"truncate_every": 1}, "truncated"),
        ("3 + 4 = 7, I think.", {}, "no_answer"),
        ("I cannot help with that.", {}, "refused"),
        ("line\n" * 50 + "Answer: 5", {}, "too_many_steps"),
    ],
)
def test_a_solution_that_cannot_be_labelled_costs_no_rollout_and_says_why(
    solves: str, faults: dict[str, int], reason: str
) -> None:
    goer = _engine(GOES_ON)
    solver = _engine({"Solve": solves}, **faults)
    step = ProcessSteps(engine="s", rollout="g")
    records = list(step.generate([APPLES], {"s": solver, "g": goer}, Random(0)))
    assert _reasons(records) == [reason]
    assert [r for r in records if isinstance(r, Step)] == goer.waves == []
    assert _figures(records, "yield")["answered"] == 0
    told = {"engine_error": [], "too_many_steps": [(None, 1.0)]}.get(reason, [("invalid", None)])
    assert [(r.verdict, r.score) for r in records if isinstance(r, Judgement)] == told, "unread is not wrong"


def test_a_problem_without_its_answer_is_told() -> None:
    records = _run(RIGHT, prompts=(Prompt(user("1 + 1?")), APPLES))
    assert _reasons(records) == ["no_reference_answer"]
    assert _labels(records) == [1, 1, 1]


def test_a_run_that_died_ends_as_one_that_did_not_and_asks_nothing_twice(tmp_path: Path) -> None:
    step = ProcessSteps(engine="e", n=3, rollouts=4)
    rules = {"Solve": [RIGHT, WRONG], **GOES_ON}

    def run(store: Store, **faults: int) -> int:
        watched = Watched(Scripted(replies=dict(rules), shuffle=3, **faults).open())  # type: ignore[arg-type]
        engine = Journal(watched, store)
        flow.append(store, step.generate([APPLES, PEARS], {"e": engine}, Random(5)), "steps")
        return sum(len(wave) for wave in watched.waves)

    whole, cut = Store(tmp_path / "whole.duckdb"), Store(tmp_path / "cut.duckdb")
    asked = run(whole)
    with pytest.raises(EngineError, match="died after 7"):
        run(cut, die_after=7)
    answered = cut.rows("SELECT count(*) FROM calls")[0][0]
    assert 6 < answered < asked, "it died among the rollouts"
    assert run(cut) == asked - answered
    for name in ("completions", "calls"):
        assert cut.rows(CONTENT[name]) == whole.rows(CONTENT[name])
    steps = "SELECT * EXCLUDE (run_id, created_at) FROM steps ORDER BY id"
    assert cut.rows(steps) == whole.rows(steps) != []


# --- judges ----------------------------------------------------------------------------------------------------------

JUDGE = {"to be judged:\n7 - 2 = 6": "It is 5.\nVerdict: wrong", "to be judged:": "It follows.\nVerdict: right"}


def test_a_judge_labels_steps_without_rollouts_or_an_answer() -> None:
    records = _run(WRONG, judges=JUDGE, labels="judge", prompts=(Prompt(APPLES.messages),))
    assert _labels(records) == [1, 0, None, None]
    told = [(r.aspect, r.verdict, r.judge_kind) for r in records if isinstance(r, Judgement)]
    assert told == [("step/0", "win", "model"), ("step/1", "lose", "model")]


def test_an_unreadable_judgement_is_invalid_and_no_label() -> None:
    records = _run(RIGHT, judges={"judged": "Looks right to me, or wrong."}, labels="judge")
    assert _labels(records) == [None, None, None]
    assert {r.verdict for r in records if isinstance(r, Judgement) and r.judge_kind == "model"} == {"invalid"}
    assert _reasons(records) == ["unreadable_judgement"] * 3 + ["unlabelled"] * 3


@pytest.mark.parametrize(("fault", "reason"), [("error_every", "engine_error"), ("truncate_every", "truncated")])
def test_a_judgement_that_fails_is_a_row_and_no_label(fault: str, reason: str) -> None:
    records = _run(RIGHT, judges=_engine({"judged": "Verdict: right"}, **{fault: 1}), labels="judge")
    assert _labels(records) == [None, None, None]
    assert _reasons(records)[:3] == [reason] * 3


def test_consensus_labels_a_step_only_where_both_agree() -> None:
    agreed = _run(WRONG, judges=JUDGE, labels="consensus")
    assert _labels(agreed) == [1, 0, None, None]
    assert _figures(agreed, "conformance")["agreement"] == 1.0
    disputed = _run(WRONG, judges={"judged": "Fine.\nVerdict: right"}, labels="consensus")
    steps = [r for r in disputed if isinstance(r, Step)]
    assert [(s.label, s.rollouts) for s in steps] == [(1, 8), (None, 8), (None, 0), (None, 0)]
    assert [(r.reason, r.text) for r in disputed if isinstance(r, Verdict)] == [("disputed", "7 - 2 = 6")]
    assert _figures(disputed, "conformance")["agreement"] == 0.5


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("It follows.\nVerdict: right", True), ("right", True), ("Wrong.", False), ("**Verdict:** wrong", False),
        ("计算正确。\n结论：正确", True), ("结论：错误。", False), ("错误", False), ("", None), ("Verdict:", None),
        ("Verdict: right\nBut I am not sure.", None), ("It is not right", None), ("Verdict: right or wrong", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_or_is_none(reply: str, said: bool | None) -> None:
    assert verdict(reply) is said


# --- rejection, searching, what exists -------------------------------------------------------------------------------


def test_process_rejection_keeps_only_solutions_whose_every_step_holds() -> None:
    records = _run([RIGHT, WRONG], n=6, keep="right")
    answers = {r.id: r.text for r in records if isinstance(r, Completion)}
    dropped = [r for r in records if isinstance(r, Verdict)]
    assert {(answers[v.record_id], v.reason, v.text) for v in dropped} == {(WRONG, "wrong_step", "7 - 2 = 6")}
    assert {v.evidence_id for v in dropped} <= {r.id for r in records if isinstance(r, Step)}
    assert len(dropped) == list(answers.values()).count(WRONG) > 0
    assert _figures(records, "yield")["kept"] == list(answers.values()).count(RIGHT) > 0


def test_a_lucky_answer_behind_a_wrong_step_is_rejected() -> None:
    lucky = "3 + 4 = 8\n8 - 2 = 5\nAnswer: 5"
    records = _run(lucky, {"= 8\n$": "8 - 2 = 6\nAnswer: 6"}, keep="right")
    assert [(r.reason, r.text) for r in records if isinstance(r, Verdict)] == [("wrong_step", "3 + 4 = 8")]


def test_a_judged_solution_with_a_wrong_answer_is_rejected() -> None:
    records = _run("3 + 4 = 8\nAnswer: 8", judges={"judged": "Verdict: right"}, labels="judge", keep="right")
    assert _reasons(records) == ["wrong_answer"]


@pytest.mark.parametrize("search", ["forward", "binary"])
@pytest.mark.parametrize("count", range(1, 10))
def test_the_search_finds_the_first_wrong_step(search: Search, count: int) -> None:
    for wrong in range(count):
        labels, asked = {count - 1: Label(0)}, 0
        while places := wanted(labels, count, search):
            [place] = places
            labels[place], asked = Label(int(place < wrong), 0.5, 8), asked + 1
        found = [label.hard for label in settled(labels, count, search)]
        assert found == [1] * wrong + [0] + [None] * (count - 1 - wrong)
        assert asked <= (count if search == "forward" else (count - 1).bit_length())


def test_binary_search_stops_where_it_learns_nothing() -> None:
    assert wanted({4: Label(1)}, 5, "binary") == [], "from a right answer all steps before it can reach it"
    assert [label.hard for label in settled({4: Label(1)}, 5, "binary")] == [1] * 5
    assert wanted({4: Label(0), 1: Label()}, 5, "binary") == [], "a step without rollouts says nothing"


def test_existing_answers_are_labelled_without_an_engine_that_writes() -> None:
    written = tuple(Completion(APPLES.id, text, engine="import") for text in (RIGHT, WRONG))
    step = ProcessSteps(rollout="g", rollouts=4)
    records = list(step.review([Answered(APPLES, written), Answered(PEARS, ())], {"g": _engine(GOES_ON)}, Random(0)))
    assert [r for r in records if isinstance(r, Completion)] == list(written)
    assert _labels(records) == [1, 1, 1, 1, 0, None, None]
    assert _reasons(records) == ["no_solution"]


def test_an_imported_answer_is_the_reference_where_meta_has_none() -> None:
    asked = Prompt(APPLES.messages)
    gold = Completion(asked.id, "3 + 4 = <<3+4=7>>7\n7 - 2 = 5\n#### 5", engine="import")
    engines = {"e": _engine({"Solve": RIGHT, **GOES_ON})}
    records = list(ProcessSteps(engine="e").review([Answered(asked, (gold,))], engines, Random(0)))
    assert _labels(records) == [1, 1, 1]
    assert [r.text for r in records if isinstance(r, Completion)] == [RIGHT]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name `rollout`"),
        ({"engine": "e", "labels": "consensus"}, "needs `judge`"),
        ({"engine": "e", "judge": "j", "labels": "judge", "search": "binary"}, "needs `labels: rollouts`"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ProcessSteps(**options)  # type: ignore[arg-type]


def test_the_packaged_spec_and_its_seeds_are_valid() -> None:
    spec = load_spec(ROOT / "specs/process.yaml")
    assert [stage_title(s) for s in spec.stages][1:3] == ["generate process_steps"] * 2
    seeds = [r for r in records_of(ROOT / "specs/seeds/mini_steps.jsonl") if isinstance(r, Prompt)]
    assert len({p.id for p in seeds}) == 150
    for prompt in seeds:
        task = solve(prompt.text)
        assert task is not None
        assert same_answer(final_answer(task.answer) or "", str(prompt.meta["answer"]))
        assert split_of(prompt.text) == "train"


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "solution", "steps"),
    [
        ("lines", "3 + 4 = 7\n\n7 - 2 = 5\nAnswer: 5", ["3 + 4 = 7", "7 - 2 = 5", "Answer: 5"]),
        ("lines", "先算 3 + 4 = 7\n答案：7\n", ["先算 3 + 4 = 7", "答案：7"]),
        ("paragraphs", "One\nmore.\n\n \nTwo.\n\nAnswer: 2", ["One\nmore.", "Two.", "Answer: 2"]),
        ("numbered", "Well.\nStep 1: a\nb\nStep 2: c\nAnswer: 5", ["Well.\nStep 1: a\nb", "Step 2: c", "Answer: 5"]),
        ("numbered", "1. a 3.5\n2. b\n3) c", ["1. a 3.5", "2. b", "3) c"]),
        (
            "numbered",
            "第一步：甲\n第2步：乙\n步骤三：丙\n答案：5",
            ["第一步：甲", "第2步：乙", "步骤三：丙", "答案：5"],
        ),
        (
            "sentences",
            "It costs 3.50 dollars. Mr. Li pays. Right?",
            ["It costs 3.50 dollars.", "Mr. Li pays.", "Right?"],
        ),
        ("sentences", "先算三加四。“得七。”再减二！\n答案：5", ["先算三加四。", "“得七。”", "再减二！", "答案：5"]),
        ("lines", " \n ", []),
    ],
)
def test_a_solution_is_split_into_steps(style: Style, solution: str, steps: list[str]) -> None:
    parts = split(solution, style)
    assert [part.text for part in parts] == steps
    for shorter, longer in pairwise(parts):
        assert longer.prefix.startswith(shorter.prefix)
        assert solution.startswith(shorter.prefix)
        assert not shorter.prefix.endswith((" ", "\t")), "a blank belongs to the token that follows"
    assert not parts or parts[-1].prefix == solution.rstrip(" \t")


def test_a_chinese_problem_is_asked_and_judged_in_chinese() -> None:
    asked = Prompt(user("小明有3个苹果，又得到4个，吃了2个，还剩几个？"), meta={"answer": 5}, language="zh")
    solves = "3 + 4 = 7\n7 - 2 = 5\n答案：5个"
    goer, judge = (
        _engine({"= 7\n$": "7 - 2 = 5\n答案：5", "= 5\n": "答案：5元"}),
        _engine({"待判断的第": "对。\n结论：正确"}),
    )
    assert _labels(_run(solves, goer, judge, (asked,), labels="consensus")) == [1, 1, 1]
    assert "前面的步骤：\n3 + 4 = 7" in judge.waves[1][0].messages[0]["content"]


# --- the real small models -------------------------------------------------------------------------------------------


def test_real_models_write_and_label_steps() -> None:
    family, rng = next(f for f in ENGLISH if f.name == "story"), Random(3)
    tasks = [draw(family, rng) for _ in range(6)]
    prompts = [Prompt(user(t.text), meta={"answer": t.answer}, language="en") for t in tasks]
    engines = {name: Transformers(model=f"mini-{name}", device="cpu", threads=1).open() for name in ("weak", "strong")}
    step = ProcessSteps(
        engine="weak", rollout="strong", n=2, rollouts=4, templates=ROOT / "specs/templates/mini",
        sampling={"temperature": 1.0, "max_tokens": 48}, rollout_sampling={"temperature": 0.7, "max_tokens": 48},  # type: ignore[arg-type]
    )  # fmt: skip
    records = list(step.generate(prompts, engines, Random(0)))
    steps = [r for r in records if isinstance(r, Step)]
    assert len([r for r in records if isinstance(r, Completion)]) == 12
    labelled = [s for s in steps if s.label is not None]
    assert len(labelled) >= 12
    assert all(s.rollouts == 0 or 0 <= (s.soft_label or 0) <= 1 for s in labelled)
    for answer in (r for r in records if isinstance(r, Completion)):
        hard = [s.label for s in steps if s.completion_id == answer.id]
        assert 0 not in hard[:-1] or set(hard[hard.index(0) + 1 :]) <= {None}, "labels end with the first wrong step"
