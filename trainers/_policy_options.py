"""The options of the trainers that learn from rewards of their own answers. Names are TRL's wherever TRL has one."""

from typing import Literal

from pydantic import Field

from factory.options import step
from factory.rewards import RewardOption
from trainers._guards import Guarding
from trainers._options import Training


@step
class PolicyTraining(Training, Guarding):
    """How answers are drawn and rewarded, how they are learned, and what is watched meanwhile."""

    reward: RewardOption
    """What is learned: {rule: exact}, {model: DIR}, {judge: NAME}, {sql: "..."}, {python: "f.py:score"}, or a list."""
    gold: RewardOption | None = None
    """A reward that is measured on the same answers and never learned: the proxy may rise while it falls."""
    gold_steps: int = Field(default=1, ge=1)
    """The gold reward is measured every so many steps."""
    view: Literal["kept_prompts"] = "kept_prompts"
    """The view that holds the prompts when a dataset is given by name."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of the policy; LoRA wants about ten times that of full training."""
    max_steps: int = -1
    """Batches of rollouts; -1 follows total_episodes."""
    total_episodes: int = Field(default=0, ge=0)
    """Answers drawn in all; 0 follows num_train_epochs, which counts passes over the prompts."""
    num_generations: int = Field(default=1, ge=1)
    """Answers drawn to each prompt."""
    num_mini_batches: int = Field(default=1, ge=1)
    """Optimiser steps in one pass over a batch of rollouts; each learns per_device_train_batch_size (times
    gradient_accumulation_steps) answers."""
    max_completion_length: int = Field(default=128, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Heat of the draws. All log-probabilities are those at this heat; there is no top-p or top-k."""
    local_rollout_forward_batch_size: int = Field(default=64, ge=1)
    """Answers that are drawn, or read by the models that measure them, at once."""
    use_vllm: bool = False
    """Answers are drawn by vLLM, in this process and with the policy's present weights; else by the trainer itself."""
    vllm_gpu_memory_utilization: float = Field(default=0.3, gt=0, le=1)
    """Share of the GPU's memory for vLLM's copy of the weights and its KV cache."""
    vllm_importance_sampling_correction: bool = True
    """What is learned is weighed by how much likelier it is to the trainer than to vLLM, which rounds otherwise."""
    vllm_importance_sampling_clip_max: float = Field(default=3.0, ge=1)
    """Most that this may weigh."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """What an answer loses that did not end within max_completion_length."""
    reward_clip: float = Field(default=0.0, ge=0)
    """Rewards are cut off beyond plus and minus this; 0 leaves them."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """What a nat of entropy is worth in the policy's loss, as the mean over tokens and at the heat of the draws, so
    that it goes on exploring (Mnih et al., 2016). At 0 it is not computed."""
    target_kl: float = Field(default=0.0, ge=0)
    """The passes over a batch end early where the policy is so many nats a token from where it began; 0 never."""
    adaptive_kl_target: float = Field(default=0.0, ge=0)
    """The KL coefficient follows this KL, in nats an answer (Ziegler et al., 2019: 6); 0 keeps it fixed."""
    adaptive_kl_horizon: int = Field(default=10_000, ge=1)
    """Answers over which the KL coefficient adapts."""
    ref_model: str = ""
    """Another checkpoint as the reference; by default the base."""
    log_completions: bool = True
    """Every answer, its reward, gold reward and KL become rows of the store."""
    adam_epsilon: float = Field(default=1e-5, gt=0)
    """AdamW's guard against division by nothing."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    logging_steps: int = Field(default=1, ge=1)
    """Metrics are given every so many steps, as means over them."""
    save_steps: int = Field(default=20, ge=0)
    """The state to resume from is written every so many steps (0: never)."""
