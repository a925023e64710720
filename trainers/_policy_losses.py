"""What PPO, GRPO and RLOO compute, as pure functions. Shapes: S answers of at most T tokens, N learned tokens.

Matrices (S, T) are padded on the right; `real` (S, T) says which tokens are there. As in `_losses.py` nothing is
divided by the size of a batch: a loss gives one number for each token, and the loop divides their weighted sum.
"""

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence"]  # TRL's importance_sampling_level
_CLAMP = 20.0  # a log-ratio beyond this is a mistake, and its exponential would be infinite


# --- KL and rewards --------------------------------------------------------------------------------------------------


def kl_of(logps: Tensor, ref: Tensor, estimator: KlEstimator) -> Tensor:
    """Each token's estimate of KL(pi || ref) by d = log pi - log ref: k1 = d, k2 = d^2 / 2, k3 = e^-d - 1 + d.

    Schulman (2020), "Approximating KL divergence". k1 and k3 have the right mean. As a loss only k2 has the gradient of
    this KL; that of k3 is the gradient of KL(ref || pi). Any shape.
    """
    d = (logps - ref).clamp(-_CLAMP, _CLAMP)
    if estimator == "k1":
        return d
    return d**2 / 2 if estimator == "k2" else torch.exp(-d) - 1 + d


def token_rewards(kl: Tensor, scores: Tensor, real: Tensor, coefficient: float) -> Tensor:
    """R_t = -b kl_t, and the answer's score at its last real token (Ouyang et al., 2022, section 3.5).

    Shapes: kl and real (S, T), scores (S,); (S, T) out.
    """
    rewards = -coefficient * kl * real
    last = real.sum(1) - 1
    return rewards.scatter_add(1, last[:, None], scores.to(rewards.dtype)[:, None])


def adapted(coefficient: float, kl: float, target: float, answers: int, horizon: int) -> float:
    """b (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon): Ziegler et al. (2019), equation 4; target 0 fixes b."""
    if not target:
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * answers / horizon)


# --- advantages ------------------------------------------------------------------------------------------------------


def gae(rewards: Tensor, values: Tensor, real: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns over the tokens of answers (Schulman et al., 2016, equation 16).

    d_t = R_t + g V_(t+1) - V_t, A_t = d_t + g l A_(t+1), V behind the last token 0; returns A + V. Shapes (S, T) each.
    """
    rewards, values = rewards * real, values * real
    found, following = torch.zeros_like(rewards), rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        following = (rewards[:, t] + gamma * after - values[:, t] + gamma * lam * following) * real[:, t]
        found[:, t] = following
    return found, found + values


def whitened(values: Tensor, real: Tensor, shift: bool = True) -> Tensor:
    """(x - mean) / std over what is real; without `shift` the mean is put back. Zero elsewhere. Shapes (S, T)."""
    count = real.sum().clamp(min=1)
    mean = (values * real).sum() / count
    variance = ((values - mean) ** 2 * real).sum() / (count - 1).clamp(min=1)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if shift else scaled + mean) * real


def group_advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """(r_i - mean) / (std + 1e-4) in each group: GRPO (Shao et al., DeepSeekMath, 2024, section 4.1.2).

    Not `scaled`: without the deviation, as in Dr. GRPO (Liu et al., 2025, equation 3). Shapes: (G, K) in and out.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scaled or rewards.shape[1] < 2:
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i less the mean of the others of its group: RLOO (Ahmadian et al., 2024, section 2.3). (G, K) in and out."""
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / others


# --- answers that another engine drew --------------------------------------------------------------------------------


def truncated_ratios(old: Tensor, drawn: Tensor, real: Tensor, most: float, level: Level) -> Tensor:
    """min(pi_old / mu, most), mu an engine's probability of what it drew: a token, or (at all of its tokens) an answer.

    Truncated importance sampling (Ionides, 2008; Yao et al., 2025, for engines that round otherwise). A policy's loss
    is to be multiplied with it. Shapes (S, T) each; 1 where nothing is real.
    """
    gaps = (old - drawn) * real
    gaps = gaps.sum(1, keepdim=True) * real if level == "sequence" else gaps
    return gaps.clamp(-_CLAMP, _CLAMP).exp().clamp(max=most)


# --- losses ----------------------------------------------------------------------------------------------------------


def clipped_policy_loss(
    logps: Tensor, old: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """max(-A p, -A clip(p, 1 - low, 1 + high)), p = pi / pi_old, and where the clip decided.

    PPO (Schulman et al., 2017, equation 7); `high` above `low` is DAPO's clip-higher (Yu et al., 2025). Any one shape.
    """
    ratio = (logps - old).clamp(-_CLAMP, _CLAMP).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, and where the clip decided. Any one shape.

    The value loss of OpenAI's PPO2; Huang et al. (2022), "The 37 implementation details", number 9.
    """
    near = old + (values - old).clamp(-clip, clip)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return torch.maximum(plain, clipped) / 2, clipped > plain


def entropy_of(logits: Tensor) -> Tensor:
    """-sum_v p_v log p_v in nats of the last dimension."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)
