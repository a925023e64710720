"""Scores as rows and columns: IFD against losses worked out another way, and the filter that keeps the best."""

import json
import math
from pathlib import Path
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factory import flow
from factory.engines.checkpoints import resolve
from factory.errors import EngineError, SpecError
from factory.ifd import Difficulty, passes
from factory.records import Completion, Message, Prompt, user
from factory.steps import load_step
from factory.store import Store
from filters.quality import Quality
from generators.score import complexity
from tests.conftest import ROOT
from tests.filters_help import check, frame
from tests.test_where import scored


@pytest.fixture(scope="module")
def model() -> Difficulty:
    return Difficulty("mini-strong", batch_size=3)


TURNS = [
    user("What is 3 plus 4?"),
    user("Name a fruit."),
    (*user("Hi."), Message("assistant", "Hello."), Message("user", "Go on.")),
]


def test_ifd_is_the_ratio_of_two_losses_that_another_way_of_computing_gives_too(model: Difficulty) -> None:
    import torch

    (loss,) = model.losses([(TURNS[0], "The answer is 7.")])
    assert loss is not None
    assert loss.ifd == pytest.approx(loss.given / loss.alone)
    network, tokenizer, _ = model.loaded or ((), (), "")
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": TURNS[0][0].content}], tokenize=False, add_generation_prompt=True
    )
    for prefix, told in ((before, loss.given), (None, loss.alone)):
        start = (
            [tokenizer.bos_token_id or tokenizer.eos_token_id]
            if prefix is None
            else tokenizer(prefix, add_special_tokens=False)["input_ids"]
        )
        answer = tokenizer("The answer is 7.", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*start, *answer]])
        with torch.inference_mode():
            logs = network(input_ids=ids).logits[0].float().log_softmax(-1)
        by_hand = -sum(float(logs[len(start) + i - 1, token]) for i, token in enumerate(answer)) / len(answer)
        assert told == pytest.approx(by_hand, abs=1e-4)


def test_batches_and_company_change_nothing(model: Difficulty) -> None:
    rows = [
        (turns, text) for turns in TURNS for text in ("Seven.", "An apple is a fruit, and so is a pear.", "", "七。")
    ]
    together = model.losses(rows)
    assert [loss is None for loss in together] == [not text for _, text in rows]
    for row, loss in zip(rows, together, strict=True):
        (alone,) = Difficulty.losses(model, [row])
        assert (loss is None) == (alone is None)
        if loss and alone:
            assert loss.given == pytest.approx(alone.given, abs=2e-3)
            assert loss.tokens == alone.tokens


@given(st.lists(st.integers(1, 90), max_size=30), st.integers(1, 8), st.integers(1, 200))
def test_a_pass_holds_a_bounded_number_of_tokens_and_no_text_is_left_out(
    lengths: list[int], rows: int, tokens: int
) -> None:
    found = list(passes(lengths, rows, tokens))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= tokens


def test_answers_that_fit_their_prompts_are_easier_than_the_same_answers_shuffled(model: Difficulty) -> None:
    lines = (ROOT / "specs/seeds/mini_heldout.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    seeds = [json.loads(line) for line in lines]
    asked = [user(f"{row['instruction']}\n{row['input']}".strip()) for row in seeds]
    said = [row["output"] for row in seeds]
    means = []
    for answers in (said, [*said[7:], *said[:7]]):
        losses = model.losses(list(zip(asked, answers, strict=True)))
        means.append(sum(loss.ifd or 0 for loss in losses if loss) / len(losses))
    assert means[0] < 0.8 * means[1], means


def test_texts_too_long_for_the_model_are_cut_and_a_missing_model_is_told(model: Difficulty) -> None:
    short = Difficulty("mini-strong", max_length=16)
    short.loaded = model.loaded
    (loss,) = short.losses([(user("word " * 500), "word " * 500)])
    assert loss is not None
    assert loss.tokens == 12
    with pytest.raises((EngineError, SpecError), match="no-such"):
        Difficulty("./no-such").losses([(TURNS[0], "x")])


def test_complexity_grows_with_what_is_asked_and_not_with_saying_it_twice() -> None:
    plain, twice = Prompt(user("Name a fruit. " * 1)), Prompt(user("Name a fruit. " * 20))
    rich = Prompt(user("Name a fruit that is red, grows in Chile, ripens in May and rhymes with no other word."))
    assert complexity(plain) < complexity(twice) < complexity(rich)
    assert complexity(Prompt(user(""))) == 0


def test_scores_become_rows_columns_and_a_choice(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.duckdb")
    prompts = [Prompt(user(f"What is {n} plus 1?"), language="en", meta={"answer": str(n + 1)}) for n in range(4)]
    answers = [Completion(p.id, text) for p, text in zip(prompts, ("1", "2", "no idea", ""), strict=True)]
    store.append([*prompts, *answers], "d")
    step = load_step("generate", "score", {"base": "mini-strong", "reward": {"rule": "exact"}})
    assert step.calls(9) == 0
    flow.append(store, step.review(flow.answered(store, "d", []), {}, Random(0)), "d")
    flow.append(store, step.review(flow.answered(store, "d", []), {}, Random(0)), "d")
    told = store.rows("SELECT aspect, judge_kind, count(*) FROM judgements GROUP BY ALL ORDER BY ALL")
    assert told == [("complexity", "measure", 4), ("ifd", "measure", 3), ("reward", "rule", 4)], "once each"
    assert store.rows("SELECT measure, n FROM yield WHERE stage = 'score'") == [("scored", 11), ("without_score", 1)]
    by = load_step("filter", "where", {"sql": "score = 1 AND ifd > 0 AND complexity > 5"})
    assert flow.screen(store, by, "where", "d", []) == "2 of 4 completions kept (2 not_met)"
    best = load_step("filter", "quality", {"aspect": "ifd", "share": 0.34})
    assert flow.screen(store, best, "quality", "d", []) == "1 of 4 completions kept (2 not_among_best, 1 no_score)"
    sql = """SELECT d.score > d.threshold, j.aspect FROM drops d LEFT JOIN judgements j ON j.id = d.evidence_id
             WHERE filter = 'quality' AND reason = 'not_among_best'"""
    assert store.rows(sql) == [(False, "ifd"), (False, "ifd")]


def test_limits_the_best_share_and_missing_scores_have_reasons_of_their_own() -> None:
    asked = scored({"ifd": 0.2}, {"ifd": 0.9}, {"ifd": 1.3}, {}, {"ifd": 0.5}, {"ifd": 0.05})
    told = Quality(aspect="ifd", least=0.1, most=1.0, share=0.34).screen(asked)
    assert told["reason"].to_list() == ["not_among_best", "", "too_high", "no_score", "not_among_best", "too_low"]
    assert told["threshold"].to_list() == [0.9, 0.9, 1.0, 0.9, 0.9, 0.1]
    assert told["evidence_id"].to_list() == ["ifd0", "", "ifd2", "3", "ifd4", "ifd5"]
    assert Quality(least=0.5).screen(asked)["keep"].to_list() == [False, True, True, False, True, False]
    assert Quality().screen(asked)["reason"].to_list() == ["", "", "", "no_score", "", ""]
    with pytest.raises(ValidationError, match="share"):
        Quality(share=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.none() | st.floats(-2, 2, allow_subnormal=False), max_size=12),
    st.floats(0.01, 1, allow_subnormal=False),
    st.none() | st.floats(-2, 2, allow_subnormal=False),
)
def test_whatever_is_kept_is_no_worse_than_what_was_not_among_the_best(
    numbers: list[float | None], share: float, most: float | None
) -> None:
    asked = scored(*({} if n is None else {"a": n} for n in numbers)) if numbers else frame()
    told = Quality(aspect="a", share=share, most=most).screen(asked)
    check(asked, told.with_columns(pl.col("score", "threshold").fill_null(0.0)))
    kept = told.filter("keep")["score"].to_list()
    second = told.filter(pl.col("reason") == "not_among_best")["score"].to_list()
    assert min(kept, default=math.inf) >= max(second, default=-math.inf)
    within = [n for n in numbers if n is not None and (most is None or n <= most)]
    assert len(kept) >= min(1, len(within))


def test_the_bundled_model_is_where_it_should_be() -> None:
    assert Path(resolve("mini-base")).is_dir()
