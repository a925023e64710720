"""PPO, GRPO and RLOO as a user meets them: rollouts, learning, rows, guards, resume, equality."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from factory.errors import DataError
from factory.records import Completion, Judgement, Metric, Prompt, Verdict, user
from factory.run import run
from factory.spec import load_spec
from factory.steps import load_step
from factory.store import Store
from tests.conftest import killed
from tests.policy_help import ROWS, TRAINERS, WEAK, rows_of, series, trained, trainer
from trainers._models import bare, load
from trainers._policy_models import Pass, logps_and_entropies
from trainers._policy_rows import prompts
from trainers._rollouts import Drawing, drawn

pytestmark = pytest.mark.usefixtures("one_thread")


# --- rollouts --------------------------------------------------------------------------------------------------------


def _asked(rows: list[dict[str, Any]] = ROWS) -> Any:
    loaded = load(WEAK)
    return loaded, prompts(rows_of(rows), loaded.tokenizer, 100, "ppo").asked


def test_the_answers_are_the_same_whatever_shares_their_batch() -> None:
    loaded, asked = _asked()
    wanted = [(a, [10 * i, 10 * i + 1]) for i, a in enumerate(asked)]
    together = drawn(loaded, wanted, Drawing(1.0, 24, rows=64))
    alone = [r for pair in wanted for r in drawn(loaded, [pair], Drawing(1.0, 24, rows=1))]
    other_way = drawn(loaded, wanted[::-1], Drawing(1.0, 24, rows=4))
    assert [r.ids.tolist() for r in together] == [r.ids.tolist() for r in alone]
    assert sorted(r.ids.tolist() for r in together) == sorted(r.ids.tolist() for r in other_way)
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.logps, other.logps, atol=1e-4)
    assert len({len(r.ids) for r in together}) > 1, "they end at different times"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_s_log_probabilities_are_the_trainer_s(temperature: float) -> None:
    loaded, asked = _asked()
    rollouts = drawn(loaded, [(a, [1, 2, 3]) for a in asked], Drawing(temperature, 20, rows=64))
    found = logps_and_entropies(loaded, rollouts, Pass(5, 0, False, temperature))
    for rollout, (logps, entropy) in zip(rollouts, found, strict=True):
        assert np.allclose(rollout.logps, logps, atol=1e-4)
        assert len(entropy) == len(rollout.ids)
        assert (entropy >= 0).all()
    cold = logps_and_entropies(loaded, rollouts, Pass(64, 0, False, 0.5 * temperature))
    assert not np.allclose(cold[0][0], found[0][0], atol=1e-2)


def test_answers_follow_the_distribution_that_they_are_drawn_from() -> None:
    """The share of a first token among many draws is its probability."""
    loaded, asked = _asked(ROWS[:1])
    rollouts = drawn(loaded, [(asked[0], list(range(1500)))], Drawing(1.0, 1, rows=2000))
    counts = Counter(int(r.ids[0]) for r in rollouts)
    for token, count in counts.most_common(3):
        chance = float(np.exp(next(r.logps[0] for r in rollouts if int(r.ids[0]) == token)))
        assert abs(count / 1500 - chance) < 4 * (chance * (1 - chance) / 1500) ** 0.5


def test_an_answer_ends_with_its_end_of_turn_and_its_text_is_read_without_it() -> None:
    loaded, asked = _asked()
    rollouts = drawn(loaded, [(a, list(range(4))) for a in asked], Drawing(1.0, 24))
    ended = [r for r in rollouts if r.ended]
    assert ended
    assert all(int(r.ids[-1]) == loaded.tokenizer.eos_token_id and "<|" not in r.text for r in ended)
    assert all(len(r.ids) == 24 for r in rollouts if not r.ended)


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_the_reward_rises_and_the_checkpoint_is_another_model(name: str, tmp_path: Path) -> None:
    records = trained(name, tmp_path / "m", max_steps=12, learning_rate=3e-3, per_device_train_batch_size=16,
                   reward={"sql": "-length / 10.0"}, **{"kl_coef" if name == "ppo" else "beta": 0.01})  # fmt: skip
    scores = series(records, "objective/scores")
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1, scores
    assert series(records, "objective/kl")[-1] > 0.05
    assert series(records, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert max(series(records, "sampling/sampling_logp_difference/mean")) < 1e-4
    assert not torch.equal(load(str(tmp_path / "m")).model.lm_head.weight, load(WEAK).model.lm_head.weight)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_batch_of_sixteen_equals_four_of_four(name: str, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "a", per_device_train_batch_size=16)
    cut = trained(name, tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 2e-4
    assert series(whole, "loss") == pytest.approx(series(cut, "loss"), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_steps": 2, "adaptive_kl_target": 0.1, "adaptive_kl_horizon": 50}
    whole = trained(name, tmp_path / "whole", **options)
    running = trainer(name, **options).train(rows_of(), tmp_path / "cut")
    for record in running:
        if isinstance(record, Metric) and record.step == 4:
            running.close()
            break
    assert "step-00000002" in [p.name for p in (tmp_path / ".cut.state").iterdir()]
    rest = trained(name, tmp_path / "cut", **options)
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert series(rest, "objective/kl_coef") == series(whole, "objective/kl_coef")[2:]
    assert not (tmp_path / ".cut.state").exists()


WAYS = [
    ("ppo", {"bf16": True}), ("ppo", {"freeze_layers": 1, "whiten_rewards": True, "kl_estimator": "k3"}),
    ("grpo", {"gradient_checkpointing": True, "max_tokens_per_batch": 64}), ("grpo", {"beta": 0.0, "logging_steps": 2}),
    ("grpo", {"loss_type": "dapo", "epsilon_high": 0.28, "kl_estimator": "k2", "num_iterations": 2}),
    ("rloo", {"normalize_advantages": True, "num_generations": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_every_way_to_learn_moves_the_policy(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    records = trained(name, tmp_path / "m", **options)
    assert series(records, "objective/kl_k3")[-1] > 0.01
    assert max(series(records, "sampling/sampling_logp_difference/mean")) < (0.05 if "bf16" in options else 1e-4)
    assert series(records, "episode")[-1] == 24


def test_lora_has_its_base_as_the_reference(tmp_path: Path) -> None:
    options = {"use_peft": True, "lora_r": 4, "learning_rate": 2e-2, "max_steps": 3}
    records = trained("rloo", tmp_path / "m", **options)
    assert series(records, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert series(records, "objective/kl_k3")[-1] > 1e-4
    assert (tmp_path / "m" / "adapter" / "adapter_model.safetensors").exists()


def test_the_critic_may_begin_alone_and_as_a_reward_model(tmp_path: Path) -> None:
    rows = [{"prompt": "Say owl.", "chosen": "owl " * (1 + i), "rejected": f"cat {i}"} for i in range(6)]
    model, given = tmp_path / "rm", {"base": WEAK, "bf16": False, "max_steps": 3, "eval_fraction": 0.2}
    list(load_step("train", "reward", given).train(rows_of(rows), model))
    options = {"value_model": str(model), "critic_warmup_steps": 2, "reward": {"model": str(model)}, "max_steps": 2}
    records = trained("ppo", tmp_path / "m", value_learning_rate=1e-3, **options)
    assert series(records, "policy/approxkl_avg") == []
    assert len(series(records, "loss/value_avg")) == 2
    base, after = load(WEAK).model.state_dict(), load(str(tmp_path / "m")).model.state_dict()
    assert all(torch.equal(base[k], after[k]) for k in base), "the policy has not moved"


def test_the_passes_end_early_where_the_policy_moves_too_far(tmp_path: Path) -> None:
    options = {"num_ppo_epochs": 6, "learning_rate": 1e-2, "max_steps": 2}
    free, held = trained("ppo", tmp_path / "a", **options), trained("ppo", tmp_path / "b", target_kl=1e-4, **options)
    assert series(held, "num_tokens")[-1] < series(free, "num_tokens")[-1]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_every_answer_is_a_row_with_its_reward_its_gold_and_its_kl(tmp_path: Path) -> None:
    records = trained(
        "grpo", tmp_path / "m", reward={"rule": "length"}, gold={"rule": "exact"}, gold_steps=2, max_steps=2
    )
    completions = [r for r in records if isinstance(r, Completion)]
    assert len(completions) == 16
    assert len({c.id for c in completions}) == 16
    assert {r.id for r in records if isinstance(r, Prompt)} == {Prompt(user(r["prompt"])).id for r in ROWS}
    aspects = Counter((r.aspect, r.judge, r.judge_kind) for r in records if isinstance(r, Judgement))
    assert aspects == {("reward", "rule:length", "rule"): 16, ("kl", "policy", "measure"): 16,
                       ("gold", "rule:exact", "measure"): 8}  # fmt: skip
    assert {c.finish_reason for c in completions} <= {"stop", "length"}
    assert all(c.model.startswith("policy ") and str(tmp_path) not in c.model for c in completions)
    assert series(records, "objective/gold"), "measured at the second step"


def test_metrics_have_trl_s_names(tmp_path: Path) -> None:
    names = {r.name for r in trained("ppo", tmp_path / "m", max_steps=1) if isinstance(r, Metric)}
    assert names >= {
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "val/ratio", "val/num_eos_tokens", "episode",
    }  # fmt: skip


def test_prompts_that_leave_no_room_are_told(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "very " * 300, "answer": ""}]
    records = trained("rloo", tmp_path / "m", rows=rows, max_length=80, max_steps=1)
    assert [r.reason for r in records if isinstance(r, Verdict)] == ["too_long"]
    with pytest.raises(DataError, match="no prompt leaves room"):
        trained("rloo", tmp_path / "n", rows=rows[-1:], max_length=80)


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["warn", "raise_kl", "stop"])
def test_an_alarm_is_told_and_acted_upon(action: str, tmp_path: Path) -> None:
    options = {"guard_kl": action, "guard_kl_above": 1e-9, "max_steps": 6, "learning_rate": 1e-2}
    records = trained("rloo", tmp_path / "m", **options)
    alarms = [r for r in records if isinstance(r, Metric) and r.name == "guard/kl"]
    assert alarms
    assert "nats from the reference" in alarms[0].meta["says"]
    steps, at = len(series(records, "objective/scores")), alarms[0].step
    assert steps == (6 if action in ("warn", "raise_kl") else at)
    coefficients = series(records, "objective/kl_coef")
    assert (coefficients[at - 1] > coefficients[0]) == (action == "raise_kl")
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_a_roll_back_puts_the_best_weights_back(tmp_path: Path) -> None:
    """Gold is the opposite of the reward, so that the first steps were the best; the KL's alarm comes later."""
    options = {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "reward": {"sql": "-length"}, "beta": 0.0,
               "per_device_train_batch_size": 16}  # fmt: skip
    watched = {"gold": {"sql": "length"}, "guard_kl": "roll_back", "guard_kl_above": 0.35, "max_steps": 20,
               "guard_over_optimisation": "off"}  # fmt: skip
    records = trained("rloo", tmp_path / "m", **options, **watched)
    best = int(next(r.value for r in records if isinstance(r, Metric) and r.name == "guard/rolled_back_to"))
    assert 1 < best < len(series(records, "objective/scores")) < 20
    trained("rloo", tmp_path / "n", max_steps=best - 1, **options)
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in "mn")
    assert all(torch.equal(one[k], other[k]) for k in one)


# --- from the command line, and killed -------------------------------------------------------------------------------


def test_the_command_line_fills_the_store(tmp_path: Path) -> None:
    from factory.cli import main

    (tmp_path / "asks.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))
    store = Store(tmp_path / "s.duckdb")
    given = {"reward": '{"rule": "length"}', "max_steps": 4, "max_completion_length": 8, "bf16": "false",
             "num_generations": 4, "learning_rate": 1e-3, "guard_kl_above": 1e-9}  # fmt: skip
    arguments = ["train", "rloo", "--data", str(tmp_path / "asks.jsonl"), "--base", "mini-weak", "--out",
                 str(tmp_path / "m"), "--store", str(store.path)]  # fmt: skip
    options = itertools.chain(*(("--with", f"{k}={v}") for k, v in given.items()))
    result = CliRunner().invoke(main, [*arguments, *options])
    assert not result.exception, result.output
    found = store.rows("SELECT aspect, count(*) FROM judgements GROUP BY 1 ORDER BY 1")
    assert found == [("kl", 32), ("reward", 32)]
    assert store.rows("SELECT count(*) FROM completions WHERE dataset = 'rloo'") == [(32,)]
    assert "reward: rule:length" in (tmp_path / "m" / "README.md").read_text()
    assert "nats from the reference" in result.output
    audited = CliRunner().invoke(main, ["audit", "--store", str(store.path)])
    assert audited.exit_code == 0, audited.output
    assert "empty_answer" in {r for (r,) in store.rows("SELECT reason FROM verdicts")} or not store.rows(
        "FROM completions WHERE trim(\"text\") = ''"
    )


SPEC = """
name: learning by reward
seed: 3
engines:
  j: {use: scripted, model: judge, replies: {"^You rate": "Score: 4", "^请只就": "评分：2"}}
stages:
  - {import: asks.jsonl, into: asks}
  - train: sft
    on: SELECT prompt, meta->>'answer' AS completion FROM kept_prompts
    with: {base: mini-weak, max_steps: 1, bf16: false}
  - train: grpo
    on: asks
    with: &policy
      base: "@sft"
      bf16: false
      max_steps: 1
      num_generations: 2
      max_completion_length: 6
      reward: [{rule: exact}, {judge: j, weight: 0.5}]
      gold: {python: "r.py:score"}
"""


def test_a_spec_learns_from_what_an_earlier_stage_made_and_does_it_again_when_a_reward_changes(tmp_path: Path) -> None:
    (tmp_path / "asks.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))
    (tmp_path / "r.py").write_text("def score(prompts, completions, answers):\n    return [len(a) for a in answers]\n")
    (tmp_path / "s.yaml").write_text(SPEC)
    store, said = Store(tmp_path / "s.duckdb"), list[str]()
    for _ in range(2):
        run(load_spec(tmp_path / "s.yaml"), store, said.append)
        (tmp_path / "r.py").write_text("def score(prompts, completions, answers):\n    return [1.0 for a in answers]\n")
    assert [line for line in said if "done before" in line and "sft" in line]
    assert not [line for line in said if "done before" in line and "grpo" in line]
    golds = store.rows("SELECT value FROM metrics WHERE name = 'objective/gold' ORDER BY created_at")
    assert [g for (g,) in golds] == [pytest.approx(sum(len(r["answer"]) for r in ROWS) / 4), 1.0]
    scores = store.rows("SELECT DISTINCT score FROM judgements WHERE aspect = 'reward' ORDER BY 1")
    assert {s for (s,) in scores} <= {1.0, 2.0, 3.0}
    assert store.rows("SELECT count(*) > 0 FROM calls") == [(True,)]


_TWO = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.policy_help import trained
trained("ppo", Path(sys.argv[1]) / "ppo", per_device_train_batch_size=4, num_mini_batches=2)
trained("grpo", Path(sys.argv[1]) / "grpo", per_device_train_batch_size=4)
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_rollouts_out_and_equal_one(tmp_path: Path) -> None:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(21000 + os.getpid() % 20000),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    running = [subprocess.Popen([sys.executable, "-c", _TWO, str(tmp_path)], cwd=Path(__file__).parent.parent,
                                env=os.environ | common | {"RANK": str(rank)}) for rank in range(2)]  # fmt: skip
    assert [process.wait(timeout=280) for process in running] == [0, 0]
    for name, minibatches in {"ppo": 2, "grpo": 1}.items():
        trained(name, tmp_path / "alone", per_device_train_batch_size=8, num_mini_batches=minibatches)
        one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("alone", name))
        assert max(float((one[k] - two[k]).abs().max()) for k in one) < 2e-4


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "m"
    options = {"max_steps": 3, "save_steps": 1, "max_completion_length": 4}
    trained("ppo", out, **options)
    again = 'trained("ppo", out, max_steps=3, save_steps=1, max_completion_length=4)'
    for after in (0.3, 0.9):
        killed("from tests.policy_help import trained", again, out, after)
        assert bare(load(str(out)).model).config.model_type == "llama"
        trained("ppo", out, **options)  # and whatever state was left can be gone on from
