"""A finished training in plain language: what its metrics say is wrong, with the numbers, and what to try.

Every rule looks at the metrics of one training, under TRL's names, and tells one thing or nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from statistics import fmean, median

from factory.records import Metric

Series = Mapping[str, Sequence[tuple[int, float]]]  # metric -> (step, value), in the order of the steps
_KL, _ENTROPY = ("objective/kl", "kl"), ("objective/entropy", "entropy")
_DEAD, _CUT = ("frac_reward_zero_std",), ("completions/clipped_ratio",)
_REWARD = ("objective/scores", "reward")


def diagnose(metrics: Iterable[Metric]) -> list[str]:
    """What is wrong with a training, a sentence or two each; nothing where nothing looks wrong."""
    series: dict[str, list[tuple[int, float]]] = {}
    for metric in metrics:
        if isfinite(metric.value):
            series.setdefault(metric.name, []).append((metric.step, metric.value))
    return [said for rule in RULES if (said := rule(series))]


def _ends(series: Series, *names: str) -> tuple[float, float] | None:
    """The mean of the first and of the last fifth of the first of these metrics that is there."""
    values = next(([v for _, v in series[n]] for n in names if len(series.get(n, ())) > 1), None)
    if values is None:
        return None
    some = max(1, len(values) // 5)
    return fmean(values[:some]), fmean(values[-some:])


def _last(series: Series, *names: str) -> float | None:
    return next((series[n][-1][1] for n in names if series.get(n)), None)


# --- every trainer ---------------------------------------------------------------------------------------------------


def _still(series: Series) -> str | None:
    """Losses of policies that make their own rows do not fall, and need not."""
    found = _ends(series, "loss")
    if found is None or len(series["loss"]) < 4 or any(n in series for n in (*_KL, *_REWARD)):
        return None
    first, last = found
    if last > 1.2 * first + 0.05:
        return f"The loss rose from {first:.3g} to {last:.3g}: the weights run away. Try a lower learning_rate."
    if first - last < 0.01 * abs(first):
        steps = series["loss"][-1][0]
        return (
            f"The loss did not move: {first:.4g} at first, {last:.4g} after {steps:,} steps. Try a higher"
            " learning_rate or more steps, and look at what is learned with --dry-run."
        )
    return None


def _over_fitted(series: Series) -> str | None:
    measured = series.get("eval_loss", ())
    if len(measured) < 3:
        return None
    step, best = min(measured, key=lambda pair: pair[1])
    last = measured[-1][1]
    if last - best <= 0.02 * abs(best):
        return None
    return (
        f"Over-fitting: the held-out loss was best at step {step:,} ({best:.4g}) and rose to {last:.4g}. Try fewer"
        " epochs, more rows, or load_best_model_at_end with early_stopping_patience."
    )


def _jumps(series: Series) -> str | None:
    norms = series.get("grad_norm", ())
    if len(norms) < 8:
        return None
    usual, (step, most) = median(v for _, v in norms), max(norms, key=lambda pair: pair[1])
    if most <= 20 * usual:
        return None
    return (
        f"The gradient jumped to {most:.3g} at step {step:,} ({usual:.3g} is usual): look at the rows of that step, or"
        " try a longer warm-up."
    )


def _endless(series: Series) -> str | None:
    """The end-of-turn token of the rows that were trained on, or held out."""
    share = _last(series, "eval_end_of_turn_accuracy", "end_of_turn_accuracy")
    if share is None or share >= 0.5:
        return None
    return (
        f"The end-of-turn token is not learned: it is the likeliest one at {100 * share:.0f} % of the answers' ends, so"
        " the model will run on. Try more steps, and look at the last token with --dry-run."
    )


# --- preferences -----------------------------------------------------------------------------------------------------


def _chosen_falls(series: Series) -> str | None:
    found, gaps = _ends(series, "logps/chosen"), _ends(series, "rewards/margins")
    if found is None or gaps is None:
        return None
    first, last = found
    if first - last <= max(3.0, 0.2 * abs(first)):
        return None
    return (
        f"The chosen answers became less likely: their log-probability fell from {first:.1f} to {last:.1f} while the"
        f" margin went from {gaps[0]:.2g} to {gaps[1]:.2g}. A little of it is usual; if answers get worse, add the"
        " likelihood (loss_type [sigmoid, sft]), raise beta, or lower learning_rate."
    )


def _undecided(series: Series) -> str | None:
    share = _last(series, "eval_rewards/accuracies", "rewards/accuracies")
    if share is None or share > 0.55:
        return None
    return (
        f"The pairs are not told apart: the chosen answer is preferred in {100 * share:.0f} % of them, and a coin gives"
        " 50 %. Try a higher learning_rate or more steps; if it stays, chosen and rejected may be mixed up."
    )


def _by_heart(series: Series) -> str | None:
    """Pairs that are told apart in training and not among the held-out ones."""
    for name in ("rewards/accuracies", "accuracy"):
        seen, held = _ends(series, name), _last(series, f"eval_{name}")
        if seen and held is not None and seen[1] - held > 0.15:
            return (
                f"Over-fitting: {100 * seen[1]:.0f} % of the pairs in training are told apart, and {100 * held:.0f} %"
                " of the held-out ones. Try fewer epochs, a lower learning_rate, or more pairs."
            )
    return None


# --- reward models ---------------------------------------------------------------------------------------------------


def _by_chance(series: Series) -> str | None:
    share = _last(series, "eval_accuracy", "accuracy")
    if "mean_reward" not in series or share is None or share > 0.55:
        return None
    return (
        f"The reward model is no better than chance: {100 * share:.0f} % of the pairs are in the right order. Try more"
        " pairs or a higher learning_rate, and look whether their labels can be trusted; do not train on its rewards."
    )


def _boastful(series: Series) -> str | None:
    error = _last(series, "eval_ece")
    if error is None or error <= 0.15:
        return None
    return (
        f"The reward model is not calibrated: it is {100 * error:.0f} points off how often it is right. Try fewer"
        " steps, or center_rewards_coefficient=0.01."
    )


def _long_winded(series: Series) -> str | None:
    longer, shorter = _last(series, "eval_accuracy_better_longer"), _last(series, "eval_accuracy_better_shorter")
    if longer is None or shorter is None or longer - shorter <= 0.2:
        return None
    return (
        f"The reward model likes length: {100 * longer:.0f} % right where the better answer is the longer one,"
        f" {100 * shorter:.0f} % where it is the shorter. Balance the pairs by length before a policy learns from it."
    )


# --- policies --------------------------------------------------------------------------------------------------------


def _negative_kl(series: Series) -> str | None:
    found = _ends(series, *_KL)
    if found is None or found[1] >= -0.05:
        return None
    return (
        f"The KL is negative ({found[1]:.3g}): no KL is, so answers were not drawn from the distribution whose"
        " log-probabilities are compared. Look at temperature, top_p and top_k, and whether answers end."
    )


def _far(series: Series) -> str | None:
    found = _ends(series, *_KL)
    if found is None or found[1] <= 20:
        return None
    return (
        f"The policy went {found[1]:.3g} nats from its reference; sound runs stay below 10. Try a larger KL"
        " coefficient, a lower learning_rate, or fewer steps, and read some answers."
    )


def _narrow(series: Series) -> str | None:
    found = _ends(series, *_ENTROPY)
    if found is None or found[1] >= 0.2 * found[0]:
        return None
    return (
        f"The entropy collapsed from {found[0]:.3g} to {found[1]:.3g} nats: answers are all alike. Try entropy_coef"
        " (0.01), a larger KL coefficient, a higher temperature, or a lower learning_rate."
    )


def _dead(series: Series) -> str | None:
    found = _ends(series, *_DEAD)
    if found is None or found[1] <= 0.5:
        return None
    return (
        f"Dead groups: in {100 * found[1]:.0f} % of them all answers have the same reward ({100 * found[0]:.0f} % at"
        " first), and these teach nothing. Try prompts that are neither too easy nor too hard, larger groups, a higher"
        " temperature, or a finer reward."
    )


def _unending(series: Series) -> str | None:
    found = _ends(series, *_CUT)
    if found is None or 1 - found[1] >= 0.5 * (1 - found[0]):
        return None
    return (
        f"Answers stopped ending: {100 - 100 * found[1]:.0f} % of them end by themselves,"
        f" {100 - 100 * found[0]:.0f} % at first."
        " Try a penalty for a missing end of turn, or allow more tokens."
    )


def _unrewarded(series: Series) -> str | None:
    found = _ends(series, *_REWARD)
    if found is None or len(next(series[n] for n in _REWARD if n in series)) < 4 or found[1] > found[0]:
        return None
    return (
        f"The reward did not rise: {found[0]:.3g} at first, {found[1]:.3g} at the end. Try a higher learning_rate, a"
        " smaller KL coefficient, or more answers a step."
    )


RULES: tuple[Callable[[Series], str | None], ...] = (
    _still, _over_fitted, _jumps, _endless, _chosen_falls, _undecided, _by_heart, _by_chance, _boastful, _long_winded,
    _negative_kl, _far, _narrow, _dead, _unending, _unrewarded,
)  # fmt: skip
