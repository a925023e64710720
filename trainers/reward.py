"""Reward models: scores that order answers as people do.

A score is a linear head on the last token's hidden state. L = -log s(r_c - r_r - m) for pairs (Bradley-Terry; Ouyang et
al., 2022; margins of Llama 2), Plackett-Luce for rankings, plus c (r_c + r_r)^2 to keep scores about zero. Departures:
all answers of a prompt stand in one batch and share its tokens; pairs have weights; several dimensions and ensembles
are heads on one trunk; after training scores are measured (calibration, length bias) and their mean and deviation are
stored, so that what is read back has mean 0 and deviation 1.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from factory.errors import DataError
from factory.options import step
from factory.records import Metric, Verdict, content_id
from trainers._options import Training

if TYPE_CHECKING:
    import datasets
    import torch

    from trainers._loop import Sums, Totals
    from trainers._preferences import Ranked, RankedBatch


@step
class Reward(Training):
    """A reward model from pairs or rankings of answers."""

    view: Literal["pairs", "rankings"] = "pairs"
    """The view that holds the columns when a dataset is given by name."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate; LoRA wants about ten times that of full training."""
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows held out, whole prompts at a time, to measure accuracy, calibration and length bias."""
    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's rewards; 0.01 keeps them about zero and shrinks them a little."""
    margin_scale: float = 1.0
    """What the column `margin`, if there is one, is multiplied with; 0 leaves margins out."""
    dimensions: tuple[str, ...] = ()
    """Names of dimensions, a head each; the column `aspect` says which one a row was judged for."""
    ensemble: int = Field(default=1, ge=1)
    """Heads for each dimension, each trained on rows drawn anew; their disagreement tells where not to trust them."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Metric | Verdict]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names."""
        import torch

        from trainers._loop import Task
        from trainers._models import load, without_dropout
        from trainers._preferences import collated, ranked, weight, width
        from trainers._reward_report import report
        from trainers._rows import held_out
        from trainers._train import trained

        # 1. Rows to rankings.
        torch.manual_seed(self.seed)  # the new head
        loaded = load(self.base, "sequence", max(1, len(self.dimensions)) * self.ensemble, self.attn_implementation)
        without_dropout(loaded.model)
        found = ranked(data, data.column_names, loaded.tokenizer, self.max_length, "reward", self.margin_scale)
        yield from found.skipped
        yield Metric("rows_skipped", len(found.skipped))
        items = [item._replace(heads=self._heads(item)) for item in found.items]
        # 2. The optimisation, the measurements and the checkpoint.
        pad = loaded.tokenizer.pad_token_id
        loss = _loss(self.center_rewards_coefficient, self.ensemble)
        task = Task(lambda rows: collated(rows, pad), weight, loss, width,
                    lambda item: item.key)  # fmt: skip
        split = held_out(items, found.prompts, self.eval_fraction, self.seed)
        yield from trained(loaded, split, found.digest, task, self, out, report(self.ensemble, self.dimensions))

    def preview(self, data: "datasets.Dataset") -> Iterator[list[tuple[str, bool]]]:
        """The answers as they will be compared, in pieces that count and that do not."""
        from trainers._models import load_tokenizer
        from trainers._preferences import ranked
        from trainers._rows import shown

        tokenizer = load_tokenizer(self.base)
        found = ranked(data, data.column_names, tokenizer, self.max_length, "reward")
        yield from (shown(answer, tokenizer) for item in found.items for answer in item.answers)

    def _heads(self, item: "Ranked") -> tuple[float, ...]:
        """How much each head learns from a row: the heads of its dimension; in an ensemble as often as it is drawn."""
        if item.aspect not in self.dimensions and (self.dimensions or item.aspect):
            known = ", ".join(self.dimensions) or "none"
            raise DataError(f"row {item.key}: aspect {item.aspect!r} is no dimension; dimensions={known}")
        rng = Random(f"{self.seed} heads {content_id(*(e.ids.tobytes() for e in item.answers))}")
        drawn = [
            _poisson(rng) if self.ensemble > 1 else 1.0 for _ in range(max(1, len(self.dimensions)) * self.ensemble)
        ]
        own = [d == item.aspect for d in self.dimensions or ("",) for _ in range(self.ensemble)]
        return tuple(n if mine or not self.dimensions else 0.0 for n, mine in zip(drawn, own, strict=True))


def _poisson(rng: Random) -> float:
    """How often a row is drawn in a bootstrap of many rows (Oza and Russell, 2001)."""
    count, left = 0, rng.random()
    while left > math.exp(-1):
        count, left = count + 1, left * rng.random()
    return float(count)


def _loss(centre: float, ensemble: int) -> Any:
    from trainers._losses import centring, plackett_luce
    from trainers._models import scores

    def loss(model: Any, batch: "RankedBatch", totals: "Totals") -> tuple["torch.Tensor", "Sums"]:
        flat = scores(model, batch.text)
        rewards = batch.square(flat)
        each = plackett_luce(rewards, batch.better, batch.margins)
        if centre:
            each = each + centre * centring(rewards, batch.filled)
        return (each * batch.weights).sum() / max(totals["weight"], 1e-9), _told(flat, rewards, batch, ensemble)

    return loss


def _told(flat: "torch.Tensor", rewards: "torch.Tensor", batch: "RankedBatch", ensemble: int) -> "Sums":
    """Under TRL's names. In an ensemble `disagreement` is the deviation of its heads' rewards."""
    rewards, flat = rewards.detach(), flat.detach()
    gaps = rewards[:, :, None] - rewards[:, None, :]  # (G, K, K, H)
    counted = batch.better[..., None] * (batch.weights[:, None, None, :] > 0)
    pairs = counted.sum()
    told = {
        "accuracy": (((gaps > 0) & counted).sum(), pairs),
        "margin": ((gaps * counted).sum(), pairs),
        "mean_reward": (flat.sum(), flat.numel()),
        "min_reward": (flat.min(), 1),
        "max_reward": (flat.max(), 1),
    }
    if ensemble > 1:
        spread = flat.reshape(len(flat), -1, ensemble).std(-1)
        told["disagreement"] = (spread.sum(), spread.numel())
    return told
