"""The notation of rewards, and what scores without an engine: rules, SQL, functions of one's own, reward models."""

import json
import re
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from factory.engines.checkpoints import resolve
from factory.engines.scripted import Scripted
from factory.errors import DataError, EngineError, SpecError
from factory.records import Prompt, user
from factory.rewards import Model, Rule, Sample, named, parse_reward, placed, rewritten
from factory.run import run
from factory.scorers import combined, opened
from factory.spec import load_spec
from factory.store import Store
from generators.best_of import BestOf
from tests.conftest import ROOT


def _sample(completion: str, prompt: str = "Add 1 and 2.", **meta: str) -> Sample:
    return Sample.of(Prompt(user(prompt), meta=meta), completion)


def _score(raw: object, *samples: Sample) -> list[float | None]:
    reward = parse_reward(raw)
    return [s.value for s in combined(reward, [opened(p)(samples) for p in reward.parts])]


@pytest.mark.parametrize(
    ("raw", "completion", "score"),
    [
        ({"rule": "exact"}, " 3 \n", 1.0),
        ({"rule": "exact"}, "3.", 0.0),
        ({"rule": "answer"}, "1 + 2 = 3\nThe answer is 3.0.", 1.0),
        ({"rule": "answer"}, "答案：4", 0.0),
        ({"rule": "contains"}, "It is 3!", 1.0),
        ({"rule": "regex", "pattern": r"^\d+$"}, "12", 1.0),
        ({"rule": "regex", "pattern": r"^\d+$"}, "twelve", 0.0),
        ({"rule": "json"}, '{"a": 1}', 1.0),
        ({"rule": "json"}, "{a: 1}", 0.0),
        ({"rule": "length"}, "one two three", 3.0),
        ({"rule": "length"}, "一二三四", 4.0),
        ({"rule": "length", "words": 4}, "one two", -0.5),
        ({"rule": "refusal"}, "I'm sorry, but I can't help with that.", 1.0),
        ({"rule": "refusal"}, "抱歉，我无法帮助你。", 1.0),
        ({"rule": "refusal"}, "The answer is 3.", 0.0),
        ({"sql": "words - 2 * refusal::INT"}, "two words", 2.0),
        ({"sql": "length(completion) + length"}, "中文", 4.0),
        ({"sql": "completion = answer"}, "3", 1.0),
        ({"sql": "(meta->>'level')::INT"}, "3", 7.0),
        ([{"rule": "exact"}, {"rule": "length", "weight": -0.25}], "3", 0.75),
        ({"combine": "mean", "of": [{"rule": "exact"}, {"rule": "length", "weight": 3}]}, "3", 1.0),
        ({"combine": "min", "of": [{"rule": "exact"}, {"rule": "length"}]}, "no", 0.0),
        ({"combine": "product", "of": [{"rule": "length"}, {"rule": "length", "weight": 2}]}, "a b", 8.0),
    ],
)
def test_a_reward_worked_by_hand(raw: object, completion: str, score: float) -> None:
    assert _score(raw, _sample(completion, answer="3", level="7")) == [pytest.approx(score)]


def test_without_the_right_answer_there_is_no_score_rather_than_a_wrong_one() -> None:
    known, unknown = _sample("3", output="3"), _sample("3")
    assert _score({"rule": "exact"}, known, unknown) == [1.0, None]
    assert _score([{"rule": "length"}, {"rule": "exact"}], known, unknown) == [2.0, None]


def test_an_answer_that_an_expression_cannot_read_loses_its_own_score_alone() -> None:
    assert _score({"sql": "CAST(completion AS INT)"}, _sample("4"), _sample("'; DROP TABLE batch"), _sample("5")) == [
        4.0, None, 5.0,
    ]  # fmt: skip
    assert _score({"sql": "1 / (words - 1)"}, _sample("one")) == [None], "infinity is no score"


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1), (2", "no expression"),
        ("1) FROM batch WHERE (true", "no expression"),
        ("1; DROP TABLE batch", "no expression"),
        ("1) UNION ALL SELECT (2", "no expression"),
        ("(SELECT 1)", "a subquery"),
        ("sum(words) OVER ()", "a window"),
        ("avg(words)", "aggregates"),
        ("random()", "random"),
        ("wordz", "columns are prompt, completion"),
        ("read_text('/etc/passwd')", "read_text"),
    ],
)
def test_sql_looks_at_one_answer_alone_and_at_nothing_else(expression: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_reward({"sql": expression})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"rulez": "exact"}, "did you mean 'rule'"),
        ({"rule": "exat"}, "input should be 'exact'"),
        ({"rule": "exact", "wieght": 2}, "did you mean 'weight'"),
        ({"rule": "regex"}, "needs a `pattern`"),
        ({"rule": "regex", "pattern": "("}, "no regular expression"),
        ({"rule": "exact", "model": "m"}, "a part names one of"),
        ("exact", "a part names one of"),
        ([], "or a list of several"),
        ({"combine": "max", "of": [{"rule": "exact"}]}, "no way 'max' to combine"),
        ({"combine": "min", "of": [{"rule": "exact"}], "weight": 1}, "no key 'weight' beside"),
    ],
)
def test_mistakes_in_the_notation_are_told_with_what_is_known(raw: object, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_reward(raw)


def test_a_reward_has_a_name_and_tells_its_parts() -> None:
    reward = parse_reward([{"rule": "exact"}, {"model": "a/b", "weight": 0.5}])
    assert reward.name == "sum(rule:exact, 0.5 model:b)"
    assert (reward.kind, parse_reward({"rule": "json"}).kind) == ("reward", "rule")
    assert combined(reward, [[1.0], [2.0]])[0].told(reward) == "rule:exact 1, model:b 2"
    assert parse_reward({"judge": "strong"}).judges == ("strong",)
    with pytest.raises(SpecError, match="a judge is an engine"):
        opened(parse_reward({"judge": "strong"}).parts[0])


def test_paths_are_placed_beside_the_spec_and_stages_resolved(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    raw = {"combine": "sum", "of": [{"python": "r.py:f"}, {"model": "rm"}, {"model": "@reward"}, {"rule": "exact"}]}
    assert named(placed(raw, tmp_path)) == [
        ("python", f"{tmp_path}/r.py:f"), ("model", f"{tmp_path}/rm"), ("model", "@reward"), ("rule", "exact"),
    ]  # fmt: skip
    resolved = rewritten(raw, lambda kind, value: value.replace("@reward", "out/rm"))
    assert parse_reward(resolved).models == ("rm", "out/rm")


def test_a_function_of_ones_own_is_given_lists_and_held_to_its_word(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(prompts, completions):\n    return [len(p) - len(c) for p, c in zip(prompts, completions)]\n"
        "def gold(prompts, completions, answers, metas):\n"
        "    return [1.0 if a == c else None for a, c in zip(answers, completions)]\n"
        "def short(prompts, completions):\n    return [1.0]\n"
        "def broken(prompts, completions):\n    return [float('nan') for _ in prompts] if prompts else 1 / 0\n"
        "def raises(prompts, completions):\n    raise KeyError('x')\n"
    )
    two = (_sample("three", "four"), _sample("3", answer="3"))
    assert _score({"python": f"{path}:score"}, *two) == [-1.0, 11.0]
    assert _score({"python": f"{path}:gold"}, *two) == [None, 1.0]
    assert _score({"python": f"{path}:broken"}, *two) == [None, None]
    with pytest.raises(DataError, match="gave 1 scores for 2 completions"):
        _score({"python": f"{path}:short"}, *two)
    with pytest.raises(DataError, match="KeyError"):
        _score({"python": f"{path}:raises"}, *two)
    for wrong, said in ((f"{path}:nothing", "no function"), (f"{tmp_path}/no.py:f", "no file"), ("mine", "FILE.py")):
        with pytest.raises(SpecError, match=said):
            _score({"python": wrong}, *two)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model with two dimensions of two heads each, as trainers/reward.py writes them."""
    out = tmp_path_factory.mktemp("rm") / "rm"
    tokenizer = AutoTokenizer.from_pretrained(resolve("mini-strong"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_labels=4, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.config.reward_scale = {"mean": [0.5, 0.0], "std": [2.0, 1.0], "dimensions": ["help", "harm"], "ensemble": 2}
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_a_reward_model_scores_the_last_token_whatever_shares_the_batch(reward_model: Path) -> None:
    samples = [_sample(text) for text in ("3", "a much longer answer than the others", "三", "four")]
    together = _score({"model": str(reward_model), "batch_size": 4}, *samples)
    alone = [_score({"model": str(reward_model)}, s)[0] for s in samples]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 4


def test_a_reward_model_is_read_with_its_scale_and_dimensions(reward_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = LlamaForSequenceClassification.from_pretrained(reward_model).eval()
    turns = [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")  # up to and with the end of the turn
    with torch.inference_mode():
        raw = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0].tolist()
    helped, harmed = ((raw[0] + raw[1]) / 2 - 0.5) / 2.0, (raw[2] + raw[3]) / 2
    name, sample = str(reward_model), _sample("3")
    assert _score({"model": name, "dimension": "help"}, sample) == [pytest.approx(helped, abs=1e-5)]
    assert _score({"model": name}, sample) == [pytest.approx((helped + harmed) / 2, abs=1e-5)]
    with pytest.raises(SpecError, match="did you mean 'help'"):
        _score({"model": name, "dimension": "helpp"}, sample)


def test_best_of_keeps_what_a_reward_model_scores_highest(reward_model: Path, tmp_path: Path, store: Store) -> None:
    says = ["one", "two", "a much longer answer than the others", "三", "四五六"]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Say something."}) + "\n")
    shutil.copytree(reward_model, tmp_path / "rm")
    replies = json.dumps({".": says}, ensure_ascii=False)
    (tmp_path / "s.yaml").write_text(
        f"name: s\nengines:\n  e: {{use: scripted, model: m, replies: {replies}}}\n"
        "stages:\n  - {import: p.jsonl, into: p}\n  - {generate: best_of, from: p, into: out,"
        " with: {engine: e, n: 24, reward: {model: rm, dimension: help}}}\n"
    )
    run(load_spec(tmp_path / "s.yaml"), store, lambda line: None)
    part = {"model": str(reward_model), "dimension": "help"}
    scores = {text: _score(part, _sample(text, "Say something."))[0] or 0.0 for text in says}
    best, worst = max(says, key=scores.__getitem__), min(says, key=scores.__getitem__)
    assert len(set(scores.values())) == len(says)
    assert store.rows("SELECT completion FROM sft") == [(best,)]
    assert store.rows("SELECT chosen, rejected, margin FROM pairs") == [
        (best, worst, pytest.approx(scores[best] - scores[worst], abs=1e-5))
    ]
    told = store.rows(
        "SELECT DISTINCT c.text, j.score, judge, judge_kind FROM judgements j"
        " JOIN completions c ON c.id = completion_id WHERE other_id = ''"
    )
    assert {text: score for text, score, _, _ in told} == pytest.approx(scores, abs=1e-5), "each sample is a row"
    assert {(judge, kind) for _, _, judge, kind in told} == {("model:rm", "reward")}
    assert store.rows("SELECT reason, count(*) FROM latest_verdicts GROUP BY ALL ORDER BY ALL") == [
        ("", 1), ("not_best", 23),
    ]  # fmt: skip


def test_best_of_tells_of_a_model_that_is_no_reward_model(tmp_path: Path) -> None:
    step = BestOf(engine="e", n=2, reward={"model": "mini-weak"})  # type: ignore[arg-type]
    engines = {"e": Scripted(model="m", replies={".": ["one", "two"]}).open()}
    with pytest.raises(EngineError, match="no reward model"):
        list(step.generate([Prompt(user("Say something."))], engines, Random(0)))


def test_a_model_that_is_no_reward_model_is_refused() -> None:
    with pytest.raises(EngineError, match="no reward model"):
        opened(Model(model="mini-weak"))([_sample("3")])
    assert opened(Rule(rule="length"))([]) == []


def test_every_notation_in_the_documentation_is_read() -> None:
    text = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    shown = re.findall(r"^reward: .*$", text, re.MULTILINE)
    assert len(shown) == 12
    for line in shown:
        assert parse_reward(yaml.safe_load(line)["reward"]).parts
