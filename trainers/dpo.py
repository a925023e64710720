"""Direct preference optimisation (Rafailov et al., 2023) and its relatives: losses on D, how much more than the
reference the policy likes the chosen answer over the rejected one.

D = (log pi_c - log ref_c) - (log pi_r - log ref_r), log-probabilities summed over the answers' tokens, end of turn
included. Option names are TRL's. Departures: pairs have weights, sum_i w_i l_i / sum_i w_i over the whole step, and
margins; `sigmoid` heeds label_smoothing (cDPO); the reference is the start of the training itself, so that its
log-probabilities are computed once, before the first step, kept by content, and no second model is held.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from factory.errors import DataError
from factory.options import step
from factory.records import Metric, Verdict, content_id
from trainers._options import Training

if TYPE_CHECKING:
    import datasets
    import torch

    from factory.memory import Memory
    from trainers._loop import Sums, Totals
    from trainers._losses import Logps
    from trainers._preferences import Ranked, RankedBatch

LossType = Literal[
    "sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "simpo", "orpo", "exo_pair", "nca_pair", "apo_zero",
    "apo_down", "bco_pair", "sppo_hard", "discopop", "sft",
]  # fmt: skip
_NO_REFERENCE = {"simpo", "orpo", "sft"}


@step
class Dpo(Training):
    """Preference optimisation on pairs: DPO, cDPO, robust, IPO, hinge, SimPO, ORPO and others."""

    view: Literal["pairs"] = "pairs"
    """The view that holds the columns when a dataset is given by name."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate; LoRA wants about ten times that of full training."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    beta: float = Field(default=0.1, gt=0)
    """How dear it is to leave the reference; in ipo its regularisation, in simpo its scale (2), in orpo its weight."""
    loss_type: LossType | tuple[LossType, ...] = "sigmoid"
    """One loss, or several that are added up; `sft` is the likelihood of the chosen answers (RPO, or for ORPO)."""
    loss_weights: tuple[float, ...] = ()
    """The weights of several losses; by default 1 each."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of pairs that are the wrong way round: cDPO with sigmoid, unbiased with robust."""
    simpo_gamma: float = 0.5
    """SimPO's target margin."""
    margin_scale: float = 0.0
    """What the column `margin` is multiplied with: log s(beta D - m); 0 leaves margins out."""
    ref_model: str = ""
    """Another checkpoint as the reference; by default the base."""
    precompute_ref_log_probs: bool = True
    """Compute the reference's log-probabilities before the first step; else at each step, with LoRA switched off."""

    def train(self, data: "datasets.Dataset", out: Path) -> Iterator[Metric | Verdict]:
        """As `train_with`, remembering in a folder beside `out`."""
        from trainers._reference import FolderMemory

        yield from self.train_with(data, out, FolderMemory(out.parent / ".reference"))

    def train_with(self, data: "datasets.Dataset", out: Path, memory: "Memory") -> Iterator[Metric | Verdict]:
        """Train and write the checkpoint to `out`. Metrics under TRL's names."""
        from trainers._loop import Task
        from trainers._models import check_head, load, weights_id, without_dropout
        from trainers._preferences import collated, ranked, width
        from trainers._reference import referenced
        from trainers._rows import held_out
        from trainers._train import trained

        self._check()
        # 1. Rows to pairs.
        loaded = load(self.base, attention=self.attn_implementation)
        check_head(loaded)
        without_dropout(loaded.model)
        found = ranked(data, data.column_names, loaded.tokenizer, self.max_length, "dpo", self.margin_scale)
        yield from found.skipped
        yield Metric("rows_skipped", len(found.skipped))
        # 2. What the reference makes of them, once.
        items, digest = found.items, found.digest
        if self._needs_reference and self.precompute_ref_log_probs:
            reference = load(self.ref_model, attention=self.attn_implementation) if self.ref_model else loaded
            if reference.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
                raise DataError(f"ref_model {self.ref_model!r} has other tokens than the base: their log-probabilities "
                                "do not compare. Name one of the base's family")  # fmt: skip
            items = referenced(items, reference, self, memory)
            digest = content_id(digest, weights_id(reference.model))
        # 3. The optimisation and the checkpoint.
        pad = loaded.tokenizer.pad_token_id
        task = Task(lambda rows: collated(rows, pad), _totals, self._loss(), width, lambda item: item.key)
        split = held_out(items, found.prompts, self.eval_fraction, self.seed)
        yield from trained(loaded, split, digest, task, self, out)

    def preview(self, data: "datasets.Dataset") -> Iterator[list[tuple[str, bool]]]:
        """The answers as they will be compared, in pieces that count and that do not."""
        from trainers._models import load_tokenizer
        from trainers._preferences import ranked
        from trainers._rows import shown

        tokenizer = load_tokenizer(self.base)
        found = ranked(data, data.column_names, tokenizer, self.max_length, "dpo")
        yield from (shown(answer, tokenizer) for item in found.items for answer in item.answers)

    @property
    def _losses(self) -> tuple[str, ...]:
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    @property
    def _needs_reference(self) -> bool:
        return not set(self._losses) <= _NO_REFERENCE

    def _check(self) -> None:
        if self.loss_weights and len(self.loss_weights) != len(self._losses):
            raise DataError(f"loss_weights has {len(self.loss_weights)} numbers for {len(self._losses)} losses")
        if not self.precompute_ref_log_probs and self._needs_reference and (self.ref_model or not self.use_peft):
            raise DataError("precompute_ref_log_probs=false needs use_peft and no ref_model: the reference is the base "
                            "with the adapters off")  # fmt: skip

    def _loss(self) -> Any:
        weights = self.loss_weights or (1.0,) * len(self._losses)
        terms = [(name, weight) for name, weight in zip(self._losses, weights, strict=True) if name != "sft"]
        likelihood = sum(w for name, w in zip(self._losses, weights, strict=True) if name == "sft")

        def loss(model: Any, batch: "RankedBatch", totals: "Totals") -> tuple["torch.Tensor", "Sums"]:
            from trainers._losses import PAIR_LOSSES, Pairing

            logps, hits = _compared(model, batch, self._needs_reference)
            settings = Pairing(self.beta, self.label_smoothing, self.simpo_gamma, batch.margins)
            weights = batch.weights[:, 0]
            total, whole = logps.chosen.new_zeros(()), max(totals["weight"], 1e-9)
            for name, share in terms:
                total = total + share * (PAIR_LOSSES[name](logps, settings) * weights).sum() / whole
            if likelihood:
                total = total - likelihood * (logps.chosen * weights).sum() / max(totals["chosen_tokens"], 1e-9)
            return total, _told(logps, hits, self.beta)

        return loss


def _totals(items: "Sequence[Ranked]") -> dict[str, float]:
    from trainers._preferences import weight

    return weight(items) | {"chosen_tokens": sum(i.weight * i.answers[0].targets for i in items)}


def _compared(model: Any, batch: "RankedBatch", referenced: bool) -> tuple["Logps", "torch.Tensor"]:
    """The log-probabilities of both sides by policy and reference, and the hits among the chosen sides' tokens."""
    import torch

    from trainers._losses import Logps, summed
    from trainers._models import adapter_off, token_logps

    count = len(batch.text.ends)
    each, hits = token_logps(model, batch.text)
    sums = batch.square(summed(each, batch.text.owners, count))
    tokens = batch.square(summed(torch.ones_like(each), batch.text.owners, count))
    reference = torch.zeros_like(sums)
    if len(batch.reference):
        reference = batch.square(batch.reference)
    elif referenced:
        with torch.no_grad(), adapter_off(model):
            reference = batch.square(summed(token_logps(model, batch.text)[0], batch.text.owners, count))
    return Logps(*sums.T, *reference.T, *tokens.T), hits[batch.text.owners % 2 == 0]


def _told(p: "Logps", hits: "torch.Tensor", beta: float) -> "Sums":
    """Under TRL's names. A falling `rewards/chosen` is usual: what counts is the margin."""
    pairs = len(p.chosen)
    chosen, rejected = beta * (p.chosen - p.ref_chosen).detach(), beta * (p.rejected - p.ref_rejected).detach()
    return {
        "rewards/chosen": (chosen.sum(), pairs),
        "rewards/rejected": (rejected.sum(), pairs),
        "rewards/accuracies": ((chosen > rejected).sum(), pairs),
        "rewards/margins": ((chosen - rejected).sum(), pairs),
        "logps/chosen": (p.chosen.detach().sum(), pairs),
        "logps/rejected": (p.rejected.detach().sum(), pairs),
        "mean_token_accuracy": (hits.sum(), len(hits)),
    }
