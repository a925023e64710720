"""PPO from rewards of the policy's own answers (Ouyang et al., 2022; Schulman et al., 2017; Ziegler et al., 2019).

In each step: draw answers; reward each at its last real token, less beta KL at every token; advantages by GAE with a
critic of its own; then epochs of minibatches with the clipped losses of policy and values. Names are TRL's.
Departures: advantages are whitened over the whole batch of rollouts on all processes; the score stands at the last real
token instead of the first padding; the KL coefficient may adapt; the critic has its own learning rate and may begin
alone; nothing is averaged over padding.
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
class Ppo(PolicyTraining):
    """PPO with a critic: learns from any reward of its own answers, kept near the reference by the KL."""

    num_ppo_epochs: int = Field(default=4, ge=1)
    """Passes over a batch of rollouts."""
    kl_coef: float = Field(default=0.05, ge=0)
    """beta: what a nat of KL costs, in reward."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """The estimate of the KL in the rewards: k1 is exact in the mean, k3 exact and never negative."""
    cliprange: float = Field(default=0.2, gt=0)
    """How far the policy's ratio to where it began may count."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """How far a value may move from where it began and count."""
    vf_coef: float = Field(default=0.1, gt=0)
    """Weight of the values' loss; the critic has an optimiser of its own, so this matters to its clipping only."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda: 1 trusts the rewards alone, 0 the critic."""
    whiten_rewards: bool = False
    """Divide the tokens' rewards by their deviation in the batch; their mean stays."""
    value_model: str = ""
    """What the critic begins as: a reward model with its head; by default the base with a head of zeros."""
    value_learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of the critic."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """In so many first steps the critic learns alone."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Record]:
        """As `train_asking`, without engines: for all rewards but judges."""
        yield from self.train_asking(data, out, None)

    def train_asking(self, data: "datasets.Dataset", out: Path, ask: "Ask | None") -> Iterator[Record]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names; every answer is a row."""
        from trainers._policy import Critic, Method, learned

        critic = Critic(self.value_model, self.value_learning_rate, self._value_loss, self.critic_warmup_steps)
        method = Method("ppo", self.num_ppo_epochs, self.kl_coef, self._lessons, self._policy_loss, critic)
        yield from learned(self, method, data, out, ask)

    def _lessons(self, found: "Rolled", coefficient: float) -> "tuple[list[Group], dict[str, float]]":
        """Rewards, then advantages and returns; only then are the advantages whitened."""
        from trainers._lessons import lessons
        from trainers._policy_losses import gae, kl_of, token_rewards, whitened

        kl = kl_of(found.old, found.ref, self.kl_estimator)
        rewards = token_rewards(kl, found.scores, found.real, coefficient)
        if self.whiten_rewards:
            rewards = whitened(rewards, found.real, shift=False)
        advantages, returns = gae(rewards, found.values, found.real, self.gamma, self.lam)
        told = {"val/explained_variance": _explained(found, returns)}
        return lessons(found, whitened(advantages, found.real), returns), told

    def _policy_loss(self, model: Any, batch: "LessonBatch", totals: "Totals") -> "tuple[torch.Tensor, Sums]":
        """The mean over all tokens of a minibatch."""
        from trainers._policy_loss import clipped
        from trainers._policy_models import seen

        now = seen(model, batch.text, self.temperature, self.entropy_coef)
        each, told = clipped(now.logps, batch, self.cliprange, self.cliprange)
        loss = (each.sum() - now.bonus) / totals["tokens"]
        return loss, told | {"loss/policy_avg": (each.detach().sum(), len(each))}

    def _value_loss(self, model: Any, batch: "LessonBatch", totals: "Totals") -> "tuple[torch.Tensor, Sums]":
        from trainers._policy_losses import clipped_value_loss
        from trainers._policy_models import token_values

        values = token_values(model, batch.text)
        each, cut = clipped_value_loss(values, batch.values, batch.returns, self.cliprange_value)
        told = {"loss/value_avg": (each.detach().sum(), len(each)), "val/clipfrac_avg": (cut.sum(), len(each))}
        return self.vf_coef * each.sum() / totals["tokens"], told


def _explained(found: "Rolled", returns: "torch.Tensor") -> float:
    """1 - var(R - V) / var(R): how much of the returns the critic foresaw."""
    real = found.real
    left, whole = (returns - found.values)[real].var(), returns[real].var()
    return float(1 - left / whole.clamp(min=1e-8))
