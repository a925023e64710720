"""What is the same in every trainer: hold rows out, prepare the model, run the loop, write the checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from factory.errors import DataError
from factory.records import Metric, content_id
from trainers._files import refuse_foreign
from trainers._loop import Learner, Task, optimise
from trainers._models import Loaded, prepared, save, weights_id
from trainers._options import Training
from trainers._ranks import put_together
from trainers._state import State

Finish = Callable[[Learner, Sequence[Any], Sequence[Any]], Iterator[Metric]]  # learner, held-out and other items


def trained(loaded: Loaded, split: tuple[Sequence[Any], Sequence[Any]], digest: str, task: Task, options: Training,
            out: Path, finish: Finish | None = None) -> Iterator[Metric]:  # fmt: skip
    """Train `loaded` on the split's items, measure on those it holds out, and write the checkpoint to `out`.

    Goes on from a state that was left beside it.
    """
    refuse_foreign(out, options.base)
    identity = content_id(weights_id(loaded.model), options, digest)
    rows, heldout = split
    if options.load_best_model_at_end and not (heldout and options.eval_steps):
        raise DataError("load_best_model_at_end needs eval_fraction and eval_steps, to measure what is best")
    torch.manual_seed(options.seed)  # new adapters
    learner = Learner(prepared(loaded, options), task, options)
    state = State(out, content_id(identity, learner.ranks.world), learner.ranks)
    yield from optimise(learner, rows, heldout, state)
    if finish:
        yield from finish(learner, heldout, rows)
    if options.fsdp:
        put_together(learner.loaded.model)
    if not learner.ranks.rank:
        save(learner.loaded.model, loaded.tokenizer, out)
    learner.ranks.wait()
    state.drop()  # only now: a kill while saving costs no training
