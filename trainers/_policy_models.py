"""What policy, reference and critic make of rollouts: log-probabilities at the temperature, entropies, values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from factory.errors import DataError
from trainers._batches import Batch, cut, together
from trainers._losses import at_once, chosen_logps
from trainers._models import (
    Loaded,
    adapter_off,
    bare,
    check_head,
    head,
    hidden_states,
    load,
    packs,
    scores,
    without_dropout,
)
from trainers._options import Training
from trainers._policy_losses import entropy_of
from trainers._rollouts import Floats, Rollout


def heated(model: Any, temperature: float) -> Callable[[Tensor], Tensor]:
    """From hidden states to the logits that are drawn from."""
    logits = head(model)
    return logits if temperature == 1 else lambda hidden: logits(hidden) / temperature


def token_logps(model: Any, batch: Batch, temperature: float) -> Tensor:
    """log p of every learned token as it is drawn, (N,)."""
    return chosen_logps(hidden_states(model, batch)[batch.sources], batch.wanted, heated(model, temperature))[0]


class Seen(NamedTuple):
    """log p of every learned token, (N,), and what the policy is given for being undecided."""

    logps: Tensor
    bonus: Tensor | float


def seen(model: Any, batch: Batch, temperature: float, coefficient: float) -> Seen:
    """`token_logps`, and the tokens' summed entropies times `coefficient`; where it is 0 they are not computed."""
    if not coefficient:
        return Seen(token_logps(model, batch, temperature), 0.0)
    hidden, logits = hidden_states(model, batch)[batch.sources], heated(model, temperature)
    return Seen(chosen_logps(hidden, batch.wanted, logits)[0], coefficient * entropies(hidden, logits).sum())


def entropies(hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """The entropy of each choice in nats, (N, D) in, (N,) out; chunk by chunk, as `chosen_logps`."""
    parts = torch.split(hidden, at_once(hidden, logits))
    if len(parts) == 1:
        return entropy_of(logits(hidden).float())
    return torch.cat([checkpoint(lambda h: entropy_of(logits(h).float()), p, use_reentrant=False) for p in parts])


def token_values(critic: Any, batch: Batch) -> Tensor:
    """V before every learned token: what is still to come, (N,)."""
    return scores(critic, batch, batch.sources)[:, 0]


class Pass(NamedTuple):
    """How rollouts are read in one go: most rows, most padded tokens (0: any), bfloat16 or not."""

    rows: int
    tokens: int
    half: bool
    temperature: float


def logps_and_entropies(loaded: Loaded, rollouts: Sequence[Rollout], how: Pass) -> list[tuple[Floats, Floats]]:
    """log p and the entropy of the choice at every token of every rollout."""

    def measure(batch: Batch) -> tuple[Tensor, Tensor]:
        hidden, logits = hidden_states(loaded.model, batch)[batch.sources], heated(loaded.model, how.temperature)
        return chosen_logps(hidden, batch.wanted, logits)[0], entropies(hidden, logits)

    return [(one, other) for one, other in _read(loaded, rollouts, how, measure)]


def reference_logps(reference: "Reference", rollouts: Sequence[Rollout], how: Pass) -> list[Floats]:
    """log p of the frozen start."""
    with reference.opened() as loaded:
        found = _read(loaded, rollouts, how, lambda batch: (token_logps(loaded.model, batch, how.temperature),))
    return [each for (each,) in found]


def values_of(critic: Loaded, rollouts: Sequence[Rollout], how: Pass) -> list[Floats]:
    """The critic's values before each token."""
    return [each for (each,) in _read(critic, rollouts, how, lambda batch: (token_values(critic.model, batch),))]


def _read(
    loaded: Loaded, rollouts: Sequence[Rollout], how: Pass, measure: Callable[[Batch], tuple[Tensor, ...]]
) -> list[tuple[Floats, ...]]:
    """What `measure` gives for each rollout's own tokens, in their order. Answers to one prompt share its tokens."""
    found = dict[int, tuple[Floats, ...]]()
    groups = [list(g) for _, g in groupby(range(len(rollouts)), lambda i: rollouts[i].asked.key)]
    rows, pad = max(1, how.rows // max(map(len, groups))), loaded.tokenizer.pad_token_id
    apart = packs(loaded.model)
    loaded.model.eval()
    autocast = torch.autocast(loaded.device, torch.bfloat16) if how.half else nullcontext()
    with torch.no_grad(), autocast:
        for part in cut(groups, rows, how.tokens, lambda group: _width([rollouts[i] for i in group])):
            batch, order = together([[rollouts[i].example for i in group] for group in part], pad, apart)
            columns = [c.float().cpu().numpy() for c in measure(batch.to(loaded.device))]
            flat = [i for group in part for i in group]
            places = [flat[place] for place in order]
            edges = np.cumsum([len(rollouts[i].ids) for i in places])[:-1]
            found |= dict(zip(places, zip(*(np.split(c, edges) for c in columns), strict=True), strict=True))
    return [found[i] for i in range(len(rollouts))]


def _width(group: Sequence[Rollout]) -> int:
    return len(group[0].example.ids) + sum(len(r.ids) for r in group[1:])


# --- the frozen start ------------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """The policy before its first step: a copy, or the policy itself with its adapters off."""

    loaded: Loaded
    adapters_off: bool

    @contextmanager
    def opened(self) -> Iterator[Loaded]:
        """The model to ask."""
        with adapter_off(self.loaded.model) if self.adapters_off else nullcontext():
            yield self.loaded


def reference_of(policy: Loaded, options: Training, other: str) -> Reference:
    """With LoRA the base under the adapters; else the base, or another checkpoint, once more and frozen."""
    if options.use_peft and not other:
        return Reference(policy, True)
    loaded = load(other or options.base, attention=options.attn_implementation)
    check_head(loaded)
    without_dropout(loaded.model)
    if bare(loaded.model).config.get_text_config().vocab_size != bare(policy.model).config.get_text_config().vocab_size:
        raise DataError(f"ref_model {other!r} has other tokens than the base: its log-probabilities do not compare")
    loaded.model.requires_grad_(False)
    return Reference(loaded, False)


# --- the critic ------------------------------------------------------------------------------------------------------


def critic_of(options: Training, other: str) -> Loaded:
    """A model of values: the base or another one with a head of zeros, or a reward model on the scale of its scores.

    Several heads of a reward model become one, which gives their mean: what is its reward, too.
    """
    loaded = load(other or options.base, "sequence", 0 if other else 1, options.attn_implementation)
    without_dropout(loaded.model)
    score, scale = loaded.model.score, getattr(loaded.model.config, "reward_scale", None)
    if other and scale:
        loaded.model.score = _folded(score, scale)
    elif not other or score.out_features != 1:
        loaded.model.score = nn.Linear(score.in_features, 1, bias=False, device=score.weight.device)
        nn.init.zeros_(loaded.model.score.weight)
    return loaded


def _folded(heads: nn.Linear, scale: Mapping[str, Any]) -> nn.Linear:
    """The mean of the heads' (x - mean) / std, which is what rewards are read as, as one head."""
    members, like = int(scale["ensemble"]), heads.weight
    mean, std = (like.new_tensor(scale[name]).repeat_interleave(members) for name in ("mean", "std"))
    one = nn.Linear(heads.in_features, 1, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        before = heads.bias if heads.bias is not None else torch.zeros_like(mean)
        one.bias.copy_(((before - mean) / std).mean())
        one.weight.copy_((like / std[:, None]).mean(0, keepdim=True))
    return one
