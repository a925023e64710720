"""Process reward models: a score after each step of an answer (Lightman et al., 2023; Math-Shepherd, 2023).

L = -sum_k w_k [y_k log s(x_k) + (1 - y_k) log s(-x_k)] / sum_k w_k, x_k read at the line break behind step k, w_k the
weight of its row.
Labels are 0 and 1, or shares of rollouts that end right. Column names are TRL's (prompt, completions, labels) or those
of the view (steps, labels, soft_labels). Departures: one score with a sigmoid instead of two classes, so that soft
labels fit; how an answer's score is made of its steps' (minimum or product) stands in the checkpoint.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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


class Steps(NamedTuple):
    """A tokenised answer, and a label for each of its steps; `text` has its line breaks as learned tokens."""

    text: "Example"
    labels: tuple[float, ...]
    weight: float = 1.0


class StepsBatch(NamedTuple):
    """N steps of all sequences, in order."""

    text: "Batch"
    labels: "torch.Tensor"  # (N,)
    weights: "torch.Tensor"  # (N,) of their rows

    @property
    def real(self) -> int:
        """Tokens of all sequences."""
        return self.text.real

    def to(self, device: str) -> "StepsBatch":
        """The same batch on another device."""
        return StepsBatch(self.text.to(device), self.labels.to(device), self.weights.to(device))


@step
class ProcessReward(Training):
    """A reward model of steps, from labels of each step."""

    view: Literal["step_labels"] = "step_labels"
    """The view that holds the columns when a dataset is given by name."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate; LoRA wants about ten times that of full training."""
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the rows held out for `eval_accuracy`, whole prompts at a time."""
    reduce: Literal["min", "product"] = "min"
    """How the score of an answer is made of those of its steps."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Metric | Verdict]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names."""
        import torch

        from trainers._loop import Task
        from trainers._models import load, without_dropout
        from trainers._rows import held_out
        from trainers._train import trained

        # 1. Rows to steps.
        torch.manual_seed(self.seed)  # the new head
        loaded = load(self.base, "token", 1, self.attn_implementation)
        without_dropout(loaded.model)
        loaded.model.config.reduce_steps = self.reduce
        found = _read(data, loaded.tokenizer, self.max_length)
        yield from found.skipped
        yield Metric("rows_skipped", len(found.skipped))
        # 2. The optimisation and the checkpoint.
        pad = loaded.tokenizer.pad_token_id
        task = Task(
            lambda items: _collated(items, pad), _totals, _loss, lambda i: len(i.text.ids), lambda i: i.text.key
        )
        split = held_out(found.items, found.prompts, self.eval_fraction, self.seed)
        yield from trained(loaded, split, found.digest, task, self, out)

    def preview(self, data: "datasets.Dataset") -> Iterator[list[tuple[str, bool]]]:
        """The answers, in pieces; a step is judged at its line break."""
        from trainers._models import load_tokenizer
        from trainers._rows import shown

        tokenizer = load_tokenizer(self.base)
        yield from (shown(item.text, tokenizer) for item in _read(data, tokenizer, self.max_length).items)


def _read(data: "datasets.Dataset", tokenizer: Any, max_length: int) -> Any:
    from trainers._batches import Example
    from trainers._chat import stepwise, turns
    from trainers._rows import Row, Skip, needs, prompt_of, read, weight_of

    wanted = [("prompt", "messages"), ("steps", "completions"), ("labels", "soft_labels")]
    needs(data.column_names, wanted, "process_reward", "SELECT question AS prompt, steps, labels ...")

    def parse(row: Row, where: str) -> list[Any]:
        parts, labels = _labelled(row)
        if not parts or not all(str(p).strip() for p in parts):
            raise Skip("empty_step")
        if len(parts) != len(labels):
            raise DataError(f"{where}: {len(parts)} steps, but {len(labels)} labels: each step needs one")
        if any(label is None or not 0 <= float(label) <= 1 for label in labels):
            raise DataError(f"{where}: its labels are {labels}; they must lie between 0 and 1")
        return [stepwise(turns(prompt_of(row)), [str(p) for p in parts], tokenizer, where)]

    def build(row: Row, found: list[Example]) -> Steps:
        return Steps(found[0], tuple(map(float, _labelled(row)[1])), weight_of(row))

    return read(data, parse, build, tokenizer, max_length, "process_reward")


def _labelled(row: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The steps and their labels, up to the last that has one: behind a first wrong step labellers look no further."""
    parts, labels = list(row.get("steps") or row.get("completions") or []), list(_labels(row))
    while labels and labels[-1] is None and len(labels) == len(parts) and any(x is not None for x in labels):
        parts, labels = parts[:-1], labels[:-1]
    return parts, labels


def _labels(row: dict[str, Any]) -> Sequence[Any]:
    """The soft labels, where all of them are there; else the hard ones."""
    soft = row.get("soft_labels")
    return soft if soft and all(x is not None for x in soft) else row.get("labels") or []


def _collated(items: Sequence[Steps], pad: int) -> StepsBatch:
    import torch

    from trainers._batches import padded

    weights = torch.tensor([i.weight for i in items for _ in i.labels])
    return StepsBatch(padded([i.text for i in items], pad), torch.tensor([x for i in items for x in i.labels]), weights)


def _totals(items: Sequence[Steps]) -> dict[str, float]:
    return {"steps": sum(i.weight * len(i.labels) for i in items)}


def _loss(model: Any, batch: StepsBatch, totals: "Totals") -> tuple["torch.Tensor", "Sums"]:
    from trainers._losses import step_nll
    from trainers._models import scores

    # `sources` are the places before the learned tokens, and a score is read at the token itself
    found = scores(model, batch.text, batch.text.sources + 1)[:, 0]
    right = (found.detach() > 0) == (batch.labels > 0.5)
    loss = (step_nll(found, batch.labels) * batch.weights).sum() / max(totals["steps"], 1e-9)
    return loss, {"accuracy": (right.sum(), len(found))}
