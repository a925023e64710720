"""What is told of a batch of rollouts: metrics under TRL's names, and the reading that the guard is shown."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from trainers._guards import Reading
from trainers._lessons import Rolled
from trainers._policy_losses import kl_of
from trainers._policy_rows import category

_GRAM = 3  # tokens of what is looked for twice in an answer


def measures(found: Rolled, coefficient: float) -> dict[str, float]:
    """Rewards, KL and entropy of the rollouts; sums over an answer's tokens, means over answers."""
    kl, raw = found.kl.sum(1), [e.rated.value for e in found.of]
    gold = [e.gold for e in found.of if e.gold is not None]
    spreads = [e.rated.spread for e in found.of if e.rated.spread is not None]
    ended, lengths = [e.rollout.ended for e in found.of], found.lengths.float()
    scores = float(found.scores.mean())
    told = {
        "objective/kl": float(kl.mean()),
        "objective/kl_k3": float((kl_of(found.old, found.ref, "k3") * found.real).sum(1).mean()),
        "objective/entropy": float(-(found.old * found.real).sum(1).mean()),
        "objective/non_score_reward": float(-coefficient * kl.mean()),
        "objective/rlhf_reward": scores - coefficient * float(kl.mean()),
        "objective/scores": scores,
        "objective/scores_raw": fmean(raw),
        "objective/scores_std": float(found.scores.std()) if len(raw) > 1 else 0.0,
        "objective/kl_coef": coefficient,
        "policy/entropy_avg": float((found.entropy * found.real).sum() / found.real.sum()),
        "val/num_eos_tokens": float(sum(ended)),
        "completions/mean_length": float(lengths.mean()),
        "completions/clipped_ratio": 1 - fmean(ended),
        "sampling/sampling_logp_difference/mean": _difference(found),
    }
    told |= {"objective/gold": fmean(gold)} if gold else {}
    told |= {"objective/disagreement": fmean(spreads)} if spreads else {}
    return told | ({"frac_reward_zero_std": _dead(found)} if found.size > 1 else {})


def corrections(found: Rolled, ratios: Tensor) -> dict[str, float]:
    """How far an engine that drew the answers was from the trainer, and what was made of it."""
    each = ratios[found.real]
    far = (found.old - found.drawn)[found.real].abs().max()
    told = {name: float(value) for name, value in (("min", each.min()), ("mean", each.mean()), ("max", each.max()))}
    told = {f"sampling/importance_sampling_ratio/{name}": value for name, value in told.items()}
    return told | {"sampling/sampling_logp_difference/max": float(far)}


def reading(found: Rolled, step: int) -> Reading:
    """What the guard is shown: the proxy is the reward as it was given, before it is cut off or lessened."""
    gold = [e.gold for e in found.of if e.gold is not None]
    spreads = [e.rated.spread for e in found.of if e.rated.spread is not None]
    by_category = defaultdict[str, list[float]](list)
    for each in found.of:
        by_category[category(each.rollout.asked.prompt)].append(each.rated.value)
    return Reading(
        step, float(found.kl.sum(1).mean()), fmean(e.rated.value for e in found.of),
        fmean(gold) if gold else None, fmean(spreads) if spreads else None, float(found.lengths.float().mean()),
        fmean(_repeated(e.rollout.ids.tolist()) for e in found.of), fmean(e.rollout.ended for e in found.of),
        float((found.entropy * found.real).sum() / found.real.sum()), _dead(found) if found.size > 1 else None,
        {name: fmean(values) for name, values in sorted(by_category.items()) if name},
    )  # fmt: skip


def _difference(found: Rolled) -> float:
    """How far the trainer's log-probabilities are from those at the draw: more than rounding is a mistake somewhere."""
    gaps = [abs(e.old - e.rollout.logps).mean() for e in found.of]
    return float(fmean(map(float, gaps)))


def _dead(found: Rolled) -> float:
    """The share of groups whose answers all have the same score."""
    groups = found.scores.reshape(-1, found.size)
    return float((groups == groups[:, :1]).all(1).to(torch.float32).mean())


def _repeated(tokens: Sequence[int]) -> float:
    """The share of an answer's runs of three tokens that stood in it before."""
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
