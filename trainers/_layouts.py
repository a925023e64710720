"""Which layouts of a batch a model reads aright: found out once, by comparing them with a sequence a row.

Rows that hold several sequences lean on two habits of transformers: positions that begin anew keep packed sequences
apart, and a mask of one's own keeps shared ones apart. Models with ALiBi, with positions that are counted from the
mask, or with a state that is carried along the row do not have them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers._batches import Batch, Example, grouped, packed, padded

_CLOSE = 1e-3  # of the largest number: rounding is a hundred times less, the errors are ten times more


class Layouts(NamedTuple):
    """What a model reads aright. The mask of shared rows takes the place of a window of attention (0: it has none)."""

    packs: bool = True
    shares: bool = True
    window: int = 0

    def read(self, batch: Batch) -> bool:
        """Whether the model reads this batch, of shared or of packed rows, as it would each sequence alone."""
        if batch.mask is None:
            return self.packs
        if not self.shares or batch.positions is None:
            return self.shares
        return not self.window or int(batch.positions.max()) < self.window


def checked(hidden_states: Callable[[Batch], Tensor], config: Any, device: str) -> Layouts:
    """Two short sequences in each of the layouts."""
    text = config.get_text_config()
    ids = (np.arange(1, 25) * 7919 % text.vocab_size).astype(np.int32)
    pair = [Example(row, row) for row in (ids[:12], np.concatenate([ids[:7], ids[14:20]]))]
    with torch.no_grad():
        try:
            alone = padded(pair, 0).to(device)
            expected = hidden_states(alone)[alone.sources]
        except Exception:
            return Layouts(shares=False)
        packs, shares = (_same(hidden_states, lay([pair], 0).to(device), expected) for lay in (packed, grouped))
    return Layouts(packs, shares, _window(text))


def _same(hidden_states: Callable[[Batch], Tensor], batch: Batch, expected: Tensor) -> bool:
    try:
        found = hidden_states(batch)[batch.sources]
    except Exception:
        return False
    return bool((found - expected).abs().max() <= _CLOSE * expected.abs().max())


def _window(config: Any) -> int:
    """The narrowest window of attention, 0 where all layers see everything."""
    if not getattr(config, "use_sliding_window", True) or set(getattr(config, "layer_types", None) or ()) == {
        "full_attention"
    }:
        return 0
    names = ("sliding_window", "attention_chunk_size", "window_size")
    return min((w for name in names if isinstance(w := getattr(config, name, None), int) and w > 0), default=0)
