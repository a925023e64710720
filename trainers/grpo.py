"""GRPO: a group of answers to each prompt is its own baseline, without a critic (Shao et al., DeepSeekMath, 2024).

A_i = (r_i - mean) / std of the group, the same for all tokens of an answer; the clipped loss of PPO, plus beta times an
estimate of the KL at each token. Names are TRL's. Departures: `kl_estimator: k2` as well, for k3, the paper's, has the
gradient of KL(ref || pi) as a loss and so another optimum; `loss_type` says over what the mean is taken.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from factory.options import step
from factory.records import Record
from trainers._policy_options import PolicyTraining

if TYPE_CHECKING:
    import datasets
    import torch

    from trainers._lessons import Group, LessonBatch, Rolled
    from trainers._loop import Sums, Totals
    from trainers._rewarding import Ask


@step
class Grpo(PolicyTraining):
    """GRPO and Dr. GRPO: learns from the rewards of a group of answers to each prompt."""

    num_generations: int = Field(default=8, ge=2)
    """Answers drawn to each prompt: a group."""
    num_iterations: int = Field(default=1, ge=1)
    """Passes over a batch of rollouts."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL in the loss."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """The estimate of the KL in the loss: k3 as in the paper; k2 has the gradient of the KL from the reference."""
    epsilon: float = Field(default=0.2, gt=0)
    """How far the policy's ratio to where it began may count."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """How far it may count upwards (DAPO: 0.28); by default as far as downwards."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide a group's advantages by the deviation of its rewards, or, as in Dr. GRPO, do not."""
    loss_type: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """The mean over each answer's tokens and then over answers; the sum over max_completion_length; or the mean over
    all tokens."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Record]:
        """As `train_asking`, without engines: for all rewards but judges."""
        yield from self.train_asking(data, out, None)

    def train_asking(self, data: "datasets.Dataset", out: Path, ask: "Ask | None") -> Iterator[Record]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names; every answer is a row."""
        from trainers._policy import Method, learned

        yield from learned(
            self, Method("grpo", self.num_iterations, self.beta, self._lessons, self._loss), data, out, ask
        )

    def _lessons(self, found: "Rolled", coefficient: float) -> "tuple[list[Group], dict[str, float]]":
        from trainers._lessons import lessons
        from trainers._policy_losses import group_advantages

        each = group_advantages(found.scores.reshape(-1, found.size), self.scale_rewards == "group").reshape(-1, 1)
        return lessons(found, each * found.real, beta=coefficient), {}

    def _loss(self, model: Any, batch: "LessonBatch", totals: "Totals") -> "tuple[torch.Tensor, Sums]":
        from trainers._policy_loss import clipped
        from trainers._policy_models import seen

        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        now = seen(model, batch.text, self.temperature, self.entropy_coef)
        each, told = clipped(now.logps, batch, self.epsilon, high, self.kl_estimator)
        if self.loss_type == "grpo":
            loss = (each / batch.lengths).sum() / totals["answers"]
        elif self.loss_type == "dr_grpo":
            loss = each.sum() / (totals["answers"] * self.max_completion_length)
        else:
            loss = each.sum() / totals["tokens"]
        loss = loss - now.bonus / totals["tokens"]
        return loss, told | {"loss/policy_avg": (each.detach().sum(), len(each))}
