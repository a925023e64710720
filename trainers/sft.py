"""Supervised fine-tuning: the loss on the completions alone, their end-of-turn token included.

L = sum_i w_i sum_t m_t (-log p(y_t | y_<t)) / sum_i w_i sum_t m_t over all rows of an optimiser step, m = 1 on what is
learned. Option names are TRL's. Departures: the mask is found by rendering, and rows that are too long are left out and
told instead of cut off. Beside TRL's metrics stands how often the end of the turn was the likeliest token.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from factory.errors import DataError
from factory.options import step
from factory.records import Metric, Verdict
from trainers._options import Training

if TYPE_CHECKING:
    import datasets
    import torch

    from trainers._batches import Batch, Example
    from trainers._loop import Sums, Totals

_EXAMPLE = "SELECT question AS prompt, answer AS completion ..."


@step
class Sft(Training):
    """Supervised fine-tuning on prompt and completion."""

    view: Literal["sft"] = "sft"
    """The view that holds the columns when a dataset is given by name."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the data."""
    completion_only_loss: bool = True
    """Learn the completion only, not the prompt."""
    assistant_only_loss: bool = True
    """Of rows that are whole conversations (`messages` alone), learn the assistant's turns only."""
    packing: bool = False
    """Put several rows into one sequence of `max_length` tokens; they do not see each other."""
    neftune_noise_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings in training (NEFTune); 5 is usual, 0 is off."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Metric | Verdict]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names; loss is in nats per token."""
        from trainers._loop import Task
        from trainers._models import check_head, load
        from trainers._rows import held_out, supervised
        from trainers._train import trained

        _check_columns(data.column_names)
        if self.packing and self.num_virtual_tokens:
            raise DataError("packing and num_virtual_tokens do not go together: packed rows would see each other")
        loaded = load(self.base, attention=self.attn_implementation)
        check_head(loaded)
        # 1. Rows to tokens.
        found = supervised(data, loaded.tokenizer, self.max_length, self.completion_only_loss, self.assistant_only_loss)
        yield from found.skipped
        yield Metric("rows_too_long", sum(v.reason == "too_long" for v in found.skipped))
        # 2. The optimisation and the checkpoint.
        pad = loaded.tokenizer.pad_token_id
        task = Task(_layout(self.packing, pad), _totals, _loss(self.neftune_noise_alpha), _length, lambda i: i[0].key)
        split = held_out(found.items, found.prompts, self.eval_fraction, self.seed)
        rows, heldout = (_packs(part, self.max_length) if self.packing else [(e,) for e in part] for part in split)
        yield from trained(loaded, (rows, heldout), found.digest, task, self, out)

    def preview(self, data: "datasets.Dataset") -> Iterator[list[tuple[str, bool]]]:
        """The rows as they will be learned, in pieces that count and that do not."""
        from trainers._models import load_tokenizer
        from trainers._rows import shown, supervised

        _check_columns(data.column_names)
        tokenizer = load_tokenizer(self.base)
        found = supervised(data, tokenizer, self.max_length, self.completion_only_loss, self.assistant_only_loss)
        yield from (shown(example, tokenizer) for example in found.items)


def _packs(rows: "Sequence[Example]", room: int) -> list[tuple["Example", ...]]:
    from trainers._batches import bins

    return [tuple(rows[i] for i in group) for group in bins([len(e.ids) for e in rows], room)]


def _layout(packing: bool, pad: int) -> Any:
    from trainers._batches import packed, padded

    return lambda items: packed(items, pad) if packing else padded([e for (e,) in items], pad)


def _length(item: "Sequence[Example]") -> int:
    return sum(len(e.ids) for e in item)


def _totals(items: "Sequence[Sequence[Example]]") -> dict[str, float]:
    return {"tokens": sum(e.weight * e.targets for item in items for e in item)}


def _loss(noise: float) -> Any:
    from trainers._losses import summed
    from trainers._models import noisy, token_logps

    def loss(model: Any, batch: "Batch", totals: "Totals") -> tuple["torch.Tensor", "Sums"]:
        with noisy(model, noise if model.training else 0.0):
            logps, hits = token_logps(model, batch)
        nll = -(summed(logps, batch.owners, len(batch.ends)) * batch.weights).sum()
        ended = hits[_lasts(batch.owners)]
        told = {"mean_token_accuracy": (hits.sum(), len(hits)), "end_of_turn_accuracy": (ended.sum(), len(ended))}
        return nll / max(totals["tokens"], 1e-9), told

    return loss


def _lasts(owners: "torch.Tensor") -> "torch.Tensor":
    """Which learned tokens are their sequence's last: the ends of turns."""
    import torch

    return torch.cat([owners[1:] != owners[:-1], owners.new_ones(min(1, len(owners)), dtype=torch.bool)])


def _check_columns(names: list[str]) -> None:
    from trainers._rows import needs

    if "messages" not in names:
        needs(names, [("prompt", "messages"), ("completion",)], "SFT", _EXAMPLE)
