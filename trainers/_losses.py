"""Losses: pure functions of tensors. Shapes: N learned tokens, S sequences, P pairs, G prompts with K answers, H heads.

Nothing here divides by the size of a batch: a loss gives one number a token, a pair or a prompt, and the loop divides
their weighted sum by the weights of the whole optimiser step, so that accumulation and ranks change nothing.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers._batches import IGNORED

_LOGITS = 1 << 25  # logits held at once, 128 MB in float32; more are computed twice instead of kept


# --- tokens ----------------------------------------------------------------------------------------------------------


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the negative log-likelihood of the next tokens, in nats, over all labels that count.

    L = sum_t m_t * (-log p(y_t | y_<t)). Shapes: logits (B, T, V) predicting labels (B, T) shifted by one.
    """
    shifted = labels[:, 1:].reshape(-1)
    kept = shifted != IGNORED
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat[kept].float(), shifted[kept], reduction="sum")


def chosen_logps(hidden: Tensor, wanted: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """log p(wanted) in float32, and whether it is the likeliest token; (N, D) and (N,) in, (N,) and (N,) out.

    log p(y) = logit_y - log sum_v exp logit_v. Logits exist for a chunk of tokens at a time: where there are more than
    fit into one chunk, the backward pass computes them anew (as in the chunked losses of TRL and torchtune).
    """
    size = at_once(hidden, head)
    if len(hidden) <= size:
        return _logps(hidden, wanted, head)
    parts = zip(torch.split(hidden, size), torch.split(wanted, size), strict=True)
    done = [checkpoint(_logps, h, w, head, use_reentrant=False) for h, w in parts]
    return torch.cat([d[0] for d in done]), torch.cat([d[1] for d in done])


def _logps(hidden: Tensor, wanted: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    with torch.no_grad():
        hits = logits.argmax(-1) == wanted
    return -F.cross_entropy(logits, wanted, reduction="none"), hits


def at_once(hidden: Tensor, head: Callable[[Tensor], Tensor]) -> int:
    """Of how many tokens the logits are held at once."""
    with torch.no_grad():
        width = int(head(hidden[:1]).shape[-1]) if len(hidden) else 1
    return max(1, _LOGITS // max(1, width))


def summed(values: Tensor, owners: Tensor, sequences: int) -> Tensor:
    """Sums of the tokens' values by sequence: (N,) in, (S,) out."""
    return values.new_zeros(sequences).index_add(0, owners, values)


# --- pairs of log-probabilities --------------------------------------------------------------------------------------


class Logps(NamedTuple):
    """What policy and reference make of P pairs: log-probabilities summed over the answers' tokens, (P,) each."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def delta(self) -> Tensor:
        """D = (log pi_c - log ref_c) - (log pi_r - log ref_r)."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def mean_delta(self) -> Tensor:
        """D with each log-ratio divided by its answer's tokens."""
        return (self.chosen - self.ref_chosen) / self.chosen_tokens - (
            self.rejected - self.ref_rejected
        ) / self.rejected_tokens


class Pairing(NamedTuple):
    """The constants of a loss on pairs; `margin` is (P,) or 0."""

    beta: float = 0.1
    smoothing: float = 0.0
    gamma: float = 0.5
    margin: Tensor | float = 0.0


def sigmoid(p: Logps, o: Pairing) -> Tensor:
    """-(1 - e) log s(b D - m) - e log s(-(b D - m)): DPO (Rafailov et al., 2023), with e > 0 cDPO (Mitchell, 2023)."""
    return _smoothed(o.beta * p.delta - o.margin, o.smoothing)


def sigmoid_norm(p: Logps, o: Pairing) -> Tensor:
    """As `sigmoid`, with D averaged over tokens: length-normalised DPO (Lambert et al., Tülu 3, 2024, section 5)."""
    return _smoothed(o.beta * p.mean_delta - o.margin, o.smoothing)


def robust(p: Logps, o: Pairing) -> Tensor:
    """[-(1 - e) log s(x) + e log s(-x)] / (1 - 2e), x = b D - m: unbiased if a share e of labels is flipped.

    Chowdhury, Kini and Natarajan (2024), equation 12.
    """
    x, e = o.beta * p.delta - o.margin, o.smoothing
    return (-(1 - e) * F.logsigmoid(x) + e * F.logsigmoid(-x)) / (1 - 2 * e)


def ipo(p: Logps, o: Pairing) -> Tensor:
    """(D - m/b - 1/(2b))^2 with D averaged over tokens: Azar et al. (2023), equation 17.

    The paper writes a sum over tokens; the mean is what its authors ran, as TRL learned from them.
    """
    return (p.mean_delta - o.margin / o.beta - 1 / (2 * o.beta)) ** 2


def hinge(p: Logps, o: Pairing) -> Tensor:
    """max(0, 1 - (b D - m)): SLiC (Zhao et al., 2023) on DPO's D, as in RSO (Liu et al., 2023)."""
    return F.relu(1 - (o.beta * p.delta - o.margin))


def simpo(p: Logps, o: Pairing) -> Tensor:
    """-log s(b (log pi_c / |c| - log pi_r / |r|) - g - m), no reference: Meng, Xia and Chen (2024), equation 6."""
    x = o.beta * (p.chosen / p.chosen_tokens - p.rejected / p.rejected_tokens) - o.gamma - o.margin
    return _smoothed(x, o.smoothing)


def orpo(p: Logps, o: Pairing) -> Tensor:
    """-log s(log odds_c - log odds_r) times b, odds = q / (1 - q), q the mean token's probability.

    The odds-ratio term of ORPO (Hong, Lee and Thorne, 2024, equation 7); the paper adds it to the NLL of the chosen
    answer: loss_type [sft, orpo].
    """
    return -o.beta * F.logsigmoid(_log_odds(p.chosen / p.chosen_tokens) - _log_odds(p.rejected / p.rejected_tokens))


def exo_pair(p: Logps, o: Pairing) -> Tensor:
    """KL(q || [1 - e, e]), q = [s(b D), s(-b D)]: EXO (Ji et al., 2024), equation 16."""
    x, e = o.beta * p.delta - o.margin, max(o.smoothing, 1e-3)
    return torch.sigmoid(x) * (F.logsigmoid(x) - math.log1p(-e)) + torch.sigmoid(-x) * (F.logsigmoid(-x) - math.log(e))


def nca_pair(p: Logps, o: Pairing) -> Tensor:
    """-log s(r_c) - (log s(-r_c) + log s(-r_r)) / 2, r = b (log pi - log ref): NCA (Chen et al., 2024)."""
    c, r = o.beta * (p.chosen - p.ref_chosen), o.beta * (p.rejected - p.ref_rejected)
    return -F.logsigmoid(c) - 0.5 * F.logsigmoid(-c) - 0.5 * F.logsigmoid(-r)


def apo_zero(p: Logps, o: Pairing) -> Tensor:
    """1 - s(r_c) + s(r_r): APO-zero (D'Oosterlinck et al., 2024), equation 7: up with chosen, down with rejected."""
    return 1 - torch.sigmoid(o.beta * (p.chosen - p.ref_chosen)) + torch.sigmoid(o.beta * (p.rejected - p.ref_rejected))


def apo_down(p: Logps, o: Pairing) -> Tensor:
    """s(r_c) + 1 - s(b (ratio_c - ratio_r)): APO-down (D'Oosterlinck et al., 2024), equation 8: both sides go down."""
    return torch.sigmoid(o.beta * (p.chosen - p.ref_chosen)) + 1 - torch.sigmoid(o.beta * p.delta)


def bco_pair(p: Logps, o: Pairing) -> Tensor:
    """-log s(r_c) - log s(-r_r): the pairwise form of BCO (Jung et al., 2024), without its shift."""
    c, r = o.beta * (p.chosen - p.ref_chosen), o.beta * (p.rejected - p.ref_rejected)
    return -F.logsigmoid(c) - F.logsigmoid(-r)


def sppo_hard(p: Logps, o: Pairing) -> Tensor:
    """(ratio_c - 1/(2b))^2 + (ratio_r + 1/(2b))^2: SPPO (Wu et al., 2024), equation 4.7 with hard labels."""
    half = 0.5 / o.beta
    return (p.chosen - p.ref_chosen - half) ** 2 + (p.rejected - p.ref_rejected + half) ** 2


def discopop(p: Logps, o: Pairing) -> Tensor:
    """(1 - w) (-log s(x)) + w exp(-x), w = s(x / 0.05), x = b D: DiscoPOP (Lu et al., 2024), equation 5."""
    x = o.beta * p.delta - o.margin
    w = torch.sigmoid(x / 0.05)
    return -F.logsigmoid(x) * (1 - w) + torch.exp(-x) * w


PAIR_LOSSES: Mapping[str, Callable[[Logps, Pairing], Tensor]] = {
    f.__name__: f
    for f in (sigmoid, sigmoid_norm, robust, ipo, hinge, simpo, orpo, exo_pair, nca_pair, apo_zero, apo_down, bco_pair,
              sppo_hard, discopop)
}  # fmt: skip


def _smoothed(x: Tensor, e: float) -> Tensor:
    return -(1 - e) * F.logsigmoid(x) - e * F.logsigmoid(-x)


def _log_odds(mean_logp: Tensor) -> Tensor:
    return mean_logp - torch.log1p(-torch.exp(mean_logp))


# --- rewards ---------------------------------------------------------------------------------------------------------


def plackett_luce(rewards: Tensor, better: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-sum_k log [ exp r_k / (exp r_k + sum_{j worse than k} exp(r_j + m)) ] for each prompt and head.

    Plackett (1975) and Luce (1959); for two answers this is Bradley-Terry with a margin, -log s(r_c - r_r - m) (Llama
    2, equation 2). `better[g, k, j]` says that answer k of prompt g stands above answer j; answers that tie do not
    meet. Shapes: rewards (G, K, H) float32, better (G, K, K) bool, margin (G,) or 0; (G, H) out.
    """
    shift = margin[:, None, None] if isinstance(margin, Tensor) else rewards.new_full((1, 1, 1), margin)
    raised = rewards + shift  # as seen from above
    meets = better[..., None]  # (G, K, K, 1)
    against = torch.where(meets, raised[:, None], -torch.inf)  # (G, K, J, H): what k is measured against
    terms = torch.logsumexp(torch.cat([rewards[:, :, None], against], dim=2), dim=2) - rewards
    return torch.where(meets.any(2), terms, 0.0).sum(1)


def centring(rewards: Tensor, real: Tensor) -> Tensor:
    """(2 mean_k r_k)^2 for each prompt and head, for pairs (r_c + r_r)^2: keeps rewards about zero.

    Eisenstein et al. (2023), equation 2. Shapes: rewards (G, K, H), real (G, K) bool; (G, H) out.
    """
    return (2 * (rewards * real[..., None]).sum(1) / real.sum(1, keepdim=True)) ** 2


def step_nll(scores: Tensor, labels: Tensor) -> Tensor:
    """-[y log s(x) + (1 - y) log s(-x)] for each step; y may lie between 0 and 1 (Lightman et al., 2023; Wang et al.,
    Math-Shepherd, 2023). Shapes: (N,) each."""
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
