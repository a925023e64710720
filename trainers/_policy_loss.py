"""The clipped loss of a batch of lessons, and what is told of it: what PPO and GRPO share."""

from torch import Tensor

from trainers._lessons import LessonBatch
from trainers._loop import Sums
from trainers._policy_losses import KlEstimator, clipped_policy_loss, kl_of


def clipped(
    logps: Tensor, batch: LessonBatch, low: float, high: float, kl: KlEstimator | None = None
) -> tuple[Tensor, Sums]:
    """Each token's clipped loss, plus beta times its KL where `kl` names an estimator: (N,), and metrics."""
    each, cut = clipped_policy_loss(logps, batch.old, batch.advantages, low, high)
    if kl and batch.beta:
        each = each + batch.beta * kl_of(logps, batch.ref, kl)
    return each, told(logps.detach(), batch.old, cut)


def told(logps: Tensor, old: Tensor, cut: Tensor) -> Sums:
    """Under TRL's names; a ratio is of whatever is clipped, a token or an answer."""
    change = logps - old
    return {
        "policy/approxkl_avg": ((change**2).sum() / 2, len(change)),
        "policy/clipfrac_avg": (cut.sum(), len(change)),
        "val/ratio": (change.exp().sum(), len(change)),
    }
