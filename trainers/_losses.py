"""Losses: pure functions of tensors."""

import torch
import torch.nn.functional as F

from trainers._batches import IGNORED


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-likelihood of the next tokens, in nats, over all labels that count.

    L = sum_t m_t * (-log p(y_t | y_<t)); the caller divides by the number of targets of the whole optimiser step, so
    that accumulation and ranks change nothing. Shapes: logits (B, T, V) predicting labels (B, T) shifted by one.
    """
    shifted = labels[:, 1:].reshape(-1)
    kept = shifted != IGNORED
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat[kept].float(), shifted[kept], reduction="sum")


def token_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many of the learned tokens are the likeliest next token. Shapes as in `token_nll`."""
    shifted = labels[:, 1:]
    return ((logits[:, :-1].argmax(-1) == shifted) & (shifted != IGNORED)).sum()
