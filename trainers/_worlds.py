"""Small worlds whose right answers are known exactly: to prove that a trainer learns what its paper says.

Answers are some tokens drawn one by one from a known distribution, and the reward of an answer counts its token `a`.
So the entropy that SFT must reach, the reward that a reward model must find and the policy that preference
optimisation and PPO must end at, pi* = pi_ref exp(r / beta) / Z, are all known. Preferences come with their true
probabilities as weights, both ways round, so that there is no noise of labels.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

LETTERS = tuple("abcdefghi")
PROMPTS = tuple(f"p{i}" for i in range(16))
LENGTH = 6  # tokens of an answer
UNIFORM = (1 / 9,) * 9
SKEWED = (0.04, 0.30, 0.05, 0.05, 0.16, 0.05, 0.10, 0.05, 0.20)  # the rewarded token is rare
_SPECIAL = ("<pad>", "<end>", "<ask>", "<say>")
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }} <end> {% else %}"
    "<ask> {{ m['content'] }} <say> {% endif %}{% endfor %}"
)


class Finding(NamedTuple):
    """One thing that was measured, beside what it must be."""

    name: str
    value: float
    target: float
    tolerance: float  # how far off it may be

    @property
    def right(self) -> bool:
        """Whether the value is as near to its target as it must be; a value that is no number is not."""
        return abs(self.value - self.target) <= self.tolerance


# --- checkpoints -----------------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    """A word for each token of the world."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate((*_SPECIAL, *LETTERS, *PROMPTS))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<ask>", "<say>"],
        chat_template=_TEMPLATE,
    )  # fmt: skip


def network(seed: int = 0) -> Any:
    """A Llama of some 25 thousand weights, drawn from a seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    words = len(_SPECIAL) + len(LETTERS) + len(PROMPTS)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    ))  # fmt: skip


def reference(shares: Sequence[float], seed: int = 0, end: float = -3.0) -> Any:
    """A network that draws each letter with the given probability, whatever stands before it; `end` is log odds.

    One coordinate of all embeddings is the same and the layers begin by adding nothing, so the last hidden state has a
    constant in it, from which the output matrix makes the logits.
    """
    model = network(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        hidden = model.model(input_ids=torch.arange(model.config.vocab_size)[:, None]).last_hidden_state[..., 0].mean()
        model.lm_head.weight.zero_()
        first = len(_SPECIAL)
        model.lm_head.weight[:, 0] = -12.0 / hidden
        model.lm_head.weight[1, 0] = end / hidden  # an answer may also end
        model.lm_head.weight[first : first + len(shares), 0] = torch.tensor(shares).log() / hidden
    return model


def written(model: Any, folder: Path) -> str:
    """Save a network with the world's tokenizer; returns the folder."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer().save_pretrained(folder)
    return str(folder)


# --- rows ------------------------------------------------------------------------------------------------------------


def answers(rng: Random, shares: Sequence[float], count: int, length: int = LENGTH) -> list[str]:
    """Answers drawn from the shares, token by token."""
    return [" ".join(rng.choices(LETTERS[: len(shares)], shares, k=length)) for _ in range(count)]


def reward(answer: str) -> float:
    """How often the rewarded token stands in an answer."""
    return float(answer.split().count("a"))


def preferences(rng: Random, shares: Sequence[float], count: int) -> list[dict[str, Any]]:
    """Pairs of different answers, each both ways round, weighted with its probability s(r_c - r_r)."""
    rows = []
    for _ in range(count):
        one, other = answers(rng, shares, 2)
        if one != other:
            prompt = rng.choice(PROMPTS)
            for chosen, rejected in ((one, other), (other, one)):
                gap = torch.tensor(reward(chosen) - reward(rejected))
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "weight": float(gap.sigmoid())})
    return rows


# --- what is known of a policy ---------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Mean reward of a policy's answers, and their mean KL divergence from the reference, in nats."""

    reward: float
    kl: float


def optimum(shares: Sequence[float], beta: float) -> Known:
    """Of pi* = pi_ref exp(r / beta) / Z: for every token of an answer the same."""
    p, gain = torch.tensor(shares, dtype=torch.float64), torch.zeros(len(shares), dtype=torch.float64)
    gain[0] = 1 / beta
    best = torch.softmax(p.log() + gain, 0)
    return Known(float(LENGTH * best[0]), float(LENGTH * (best * (best / p).log()).sum()))


def measured(policy: Any, ref: Any, samples: int = 128, seed: int = 0) -> Known:
    """Of a policy, among answers of full length: its own answers are drawn, and at each step expectations are taken."""
    generator = torch.Generator().manual_seed(seed)
    asked = torch.randint(len(PROMPTS), (samples,), generator=generator) + len(_SPECIAL) + len(LETTERS)
    ids = torch.stack([torch.full_like(asked, 2), asked, torch.full_like(asked, 3)], 1)
    gained, divergence = 0.0, 0.0
    with torch.no_grad():
        for _ in range(LENGTH):
            new, old = _letters(policy, ids), _letters(ref, ids)
            gained += float(new[:, 0].exp().mean())
            divergence += float((new.exp() * (new - old)).sum(-1).mean())
            drawn = torch.multinomial(new.exp(), 1, generator=generator)
            ids = torch.cat([ids, drawn + len(_SPECIAL)], 1)
    return Known(gained, divergence)


def _letters(model: Any, ids: Tensor) -> Tensor:
    """log p of the next letter, given that it is a letter."""
    first = len(_SPECIAL)
    return model(input_ids=ids, use_cache=False).logits[:, -1, first : first + len(LETTERS)].float().log_softmax(-1)  # type: ignore[no-any-return]


def entropy(shares: Sequence[float]) -> float:
    """In nats."""
    p = torch.tensor(shares, dtype=torch.float64)
    return float(-(p * p.log()).sum())


def rankings(strengths: Sequence[float]) -> list[dict[str, Any]]:
    """Every order of the answers `a ...`, `b ...`, `c ...`, weighted with its probability by Plackett and Luce."""
    names = [f"{letter} i" for letter in LETTERS[: len(strengths)]]
    rows = []
    for order in product(range(len(strengths)), repeat=len(strengths)):
        if len(set(order)) == len(order):
            left = [torch.tensor([strengths[j] for j in order[k:]]) for k in range(len(order))]
            weight = float(torch.stack([s[0] - s.logsumexp(0) for s in left]).sum().exp())
            rows.append({"prompt": "p0", "completions": [names[j] for j in order], "weight": weight})
    return rows
