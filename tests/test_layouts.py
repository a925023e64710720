"""Rows of several sequences give every architecture what a sequence a row gives it: by a check when it is loaded."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factory.engines.checkpoints import resolve
from trainers._batches import IGNORED, Batch, Example, grouped, packed, padded
from trainers._layouts import Layouts, checked
from trainers._models import hidden_states, load, token_logps

pytestmark = pytest.mark.usefixtures("one_thread")
_SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = _SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
_MIXED = ["sliding_attention", "full_attention"]
CASES: dict[str, tuple[dict[str, Any], Layouts]] = {  # by the type of the model
    "llama": (_LLAMA, Layouts()),
    "qwen3": (_LLAMA | {"head_dim": 16}, Layouts()),
    "gpt2": ({"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}, Layouts()),
    "mistral": (_LLAMA | {"sliding_window": 16}, Layouts(window=16)),
    "gemma2": (_LLAMA | {"head_dim": 16, "sliding_window": 16, "layer_types": _MIXED}, Layouts(window=16)),
    "opt": (_SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
            Layouts(packs=False)),
    "bloom": ({"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}, Layouts(False, False)),
    "mamba": ({"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}, Layouts(False, False)),
}  # fmt: skip


def _model(name: str) -> tuple[Any, Layouts]:
    settings, expected = CASES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of a training: what is wrong shows
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    model.read_layouts = checked(lambda batch: hidden_states(model, batch), model.config, "cpu")
    return model, expected


def _pair() -> list[Example]:
    """Two answers to a prompt of forty tokens, which is longer than the windows."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, 60, 40)
    rows = [np.concatenate([prompt, rng.integers(5, 60, n)]).astype(np.int32) for n in (5, 7)]
    return [Example(ids, np.where(np.arange(len(ids)) < 40, IGNORED, ids)) for ids in rows]


def _learned(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, and the gradient of all weights together."""
    model.zero_grad()
    logps, _ = token_logps(model, batch)
    logps.square().sum().backward()
    return logps.detach(), torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CASES)
def test_shared_and_packed_rows_equal_a_sequence_a_row(name: str) -> None:
    model, expected = _model(name)
    assert model.read_layouts == expected
    logps, gradient = _learned(model, padded(_pair(), 0))
    for batch in (grouped([_pair()], 0), packed([_pair()], 0), grouped([_pair(), _pair()[::-1]], 0)):
        found, slope = _learned(model, batch)
        assert torch.allclose(found[: len(logps)], logps, atol=2e-4), "log-probabilities"
        if len(found) == len(logps):
            assert torch.allclose(slope, gradient, atol=1e-3 * float(gradient.abs().max())), "gradients"


def test_the_bundled_models_keep_the_fast_layouts() -> None:
    assert load(resolve("mini-weak")).model.read_layouts == Layouts()
