"""RLOO: REINFORCE with the other answers to a prompt as the baseline (Ahmadian et al., 2024, "Back to basics").

R_i = score - beta sum_t (log pi - log ref), A_i = R_i less the mean of the others of its group; an answer is one
action, so the ratio that is clipped is that of whole answers. Names are TRL's. Departure from the paper: several
optimiser steps on a batch, with PPO's clip, as in TRL; with num_iterations 1 and num_mini_batches 1 it is the paper's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
class Rloo(PolicyTraining):
    """RLOO: learns from each answer's reward less those of the others to its prompt."""

    num_generations: int = Field(default=4, ge=2)
    """Answers drawn to each prompt."""
    num_iterations: int = Field(default=1, ge=1)
    """Passes over a batch of rollouts."""
    beta: float = Field(default=0.05, ge=0)
    """What a nat of KL costs, in reward."""
    epsilon: float = Field(default=0.2, gt=0)
    """How far the ratio of an answer's probability to where it began may count."""
    normalize_advantages: bool = False
    """Divide the advantages by their deviation in the batch."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Record]:
        """As `train_asking`, without engines: for all rewards but judges."""
        yield from self.train_asking(data, out, None)

    def train_asking(self, data: "datasets.Dataset", out: Path, ask: "Ask | None") -> Iterator[Record]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names; every answer is a row."""
        from trainers._policy import Method, learned

        yield from learned(
            self, Method("rloo", self.num_iterations, self.beta, self._lessons, self._loss, level="sequence"),
            data, out, ask,
        )  # fmt: skip

    def _lessons(self, found: "Rolled", coefficient: float) -> "tuple[list[Group], dict[str, float]]":
        from trainers._lessons import lessons
        from trainers._policy_losses import leave_one_out

        rewards = found.scores - coefficient * found.kl.sum(1)
        each = leave_one_out(rewards.reshape(-1, found.size)).reshape(-1)
        if self.normalize_advantages:
            each = (each - each.mean()) / (each.std() + 1e-4)
        return lessons(found, each[:, None] * found.real), {}

    def _loss(self, model: Any, batch: "LessonBatch", totals: "Totals") -> "tuple[torch.Tensor, Sums]":
        """The mean over answers; an advantage stands at each token of its answer."""
        from trainers._losses import summed
        from trainers._policy_loss import told
        from trainers._policy_losses import clipped_policy_loss
        from trainers._policy_models import seen

        owners, count = batch.text.owners, len(batch.text.ends)
        now = seen(model, batch.text, self.temperature, self.entropy_coef)
        new = summed(now.logps, owners, count)
        old = summed(batch.old, owners, count)
        advantages = summed(batch.advantages / batch.lengths, owners, count)
        each, cut = clipped_policy_loss(new, old, advantages, self.epsilon, self.epsilon)
        loss = each.sum() / totals["answers"] - now.bonus / totals["tokens"]
        return loss, told(new.detach(), old, cut) | {"loss/policy_avg": (each.detach().sum(), count)}
