"""The recipe that made the three bundled checkpoints. `factory mini build` runs it; docs/mini.md holds its scores.

1. One byte-level BPE tokenizer, trained on the world's own text.
2. `mini-base`: reads raw documents (and some careless chats). Able, not aligned.
3. `mini-strong`: `mini-base` trained on exact, safe dialogues and on writing instructions.
4. `mini-weak`: a smaller model trained from scratch on fewer dialogues.
5. `mini-strong` learns to work: to judge, criticise, rewrite and vary (`jobs.py`), last on what mini-weak answers.

Everything is drawn from seeds, so the recipe gives the same models on the same machine and library versions.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from factory.mini.desk import Bank, Chat
from factory.mini.drafts import drafts
from factory.mini.jobs import jobs
from factory.mini.texts import Dialogue, chatter, dialogues, documents, instruction_writing

END, START_TURN, END_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The width and depth of a mini model."""

    hidden: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Course:
    """One stage of training: how many packed rows a step, how many steps, and the two peak learning rates."""

    steps: int
    rows: int = 32
    row: int = 256  # tokens in a packed row
    muon_lr: float = 0.02
    adam_lr: float = 3e-3


LARGE, SMALL = Size(hidden=192, layers=5, heads=3, mlp=448), Size(hidden=96, layers=3, heads=3, mlp=224)
Log = Callable[[str], None]
Piece = tuple[list[int], list[float]]  # token ids, and what each counts in the loss


def build(out: Path, log: Log, scale: float = 1.0) -> None:
    """Make the three checkpoints in `out`. `scale` shortens every course (for tests; the scores drop with it)."""
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    base = new_model(LARGE, tokenizer)
    fit(base, base_text(tokenizer), Course(round(1800 * scale)), log, "mini-base")
    course = Course(round(1000 * scale), muon_lr=0.015, adam_lr=2e-3)
    fit(base, base_text(tokenizer, "base, second course", hard=0.5), course, log, "mini-base, second course")
    save(base, tokenizer, out / "mini-base")
    course = Course(round(800 * scale), muon_lr=0.01, adam_lr=1.5e-3)
    fit(base, aligned_text(tokenizer, 0.45, hard=0.3), course, log, "mini-strong")
    course = Course(round(600 * scale), muon_lr=0.01, adam_lr=1.5e-3)
    fit(base, aligned_text(tokenizer, 0.3, "aligned, second course"), course, log, "mini-strong, second course")
    save(base, tokenizer, out / "mini-strong")
    torch.manual_seed(1)
    weak = new_model(SMALL, tokenizer)
    fit(weak, aligned_text(tokenizer, 0.2), Course(round(1000 * scale)), log, "mini-weak")
    save(weak, tokenizer, out / "mini-weak")
    employ(out / "mini-strong", out / "mini-weak", log, scale)


def employ(folder: Path, weak: Path, log: Log, scale: float = 1.0) -> None:
    """Teach a saved model the jobs of a data factory: judging, criticising, rewriting, varying, attacking.

    The last course shows it what the checkpoint `weak` really answers, and asks for twice as many plain answers.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    course = Course(round(4600 * scale), rows=4, row=512, muon_lr=0.01, adam_lr=1.25e-3)
    fit(model, working_text(tokenizer), course, log, "mini-strong, at work")
    course = Course(round(1300 * scale), rows=8, row=512, muon_lr=0.006, adam_lr=8e-4)
    text = working_text(tokenizer, "at work, second course", work=0.5, hard=0.45)
    fit(model, text, course, log, "mini-strong, at work, second course")
    course = Course(round(8000 * scale), rows=8, row=512, muon_lr=0.01, adam_lr=1.25e-3)
    bank = drafts(weak, round(6000 * scale))
    text = working_text(tokenizer, "at work, third course", work=0.45, hard=0.5, bank=bank)
    fit(model, text, course, log, "mini-strong, at work, third course")
    save(model, tokenizer, folder)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,536 tokens; digits stand alone, so that numbers can be computed with."""
    rng = Random("tokenizer")
    texts = list(islice(documents(rng), 20_000))
    texts += ["\n".join(d) for d in islice(instruction_writing(rng), 4_000)]
    texts += [d[1] for d in islice(dialogues(rng), 10_000)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True, normalized=False) for t in (END, START_TURN, END_TURN)]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1536,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_TURN, pad_token=END, bos_token=None, model_max_length=2048
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of the given size with tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def base_text(tokenizer: PreTrainedTokenizerFast, seed: str = "base", hard: float = 0.0) -> Iterator[Piece]:
    """Nineteen raw documents for each careless chat."""
    rng = Random(seed)
    raw, chats = documents(rng, hard), chatter(rng)
    while True:
        if rng.random() < 0.05:
            yield _dialogue(tokenizer, next(chats), everything=True)
        else:
            ids = [*tokenizer.encode(next(raw)), tokenizer.pad_token_id]
            yield ids, [1.0] * len(ids)


def aligned_text(
    tokenizer: PreTrainedTokenizerFast, writing: float, seed: str = "aligned", hard: float = 0.0
) -> Iterator[Piece]:
    """Aligned dialogues, a third of `writing` of them about writing instructions; those are long."""
    rng = Random(seed)
    chats, writes = dialogues(rng, hard), instruction_writing(rng)
    while True:
        yield _dialogue(tokenizer, next(writes if rng.random() < writing / 3 else chats), everything=False)


def working_text(
    tokenizer: PreTrainedTokenizerFast,
    seed: str = "at work",
    work: float = 0.6,
    hard: float = 0.3,
    bank: Bank | None = None,
) -> Iterator[Piece]:
    """A share of `work` are jobs, a tenth writes instructions, the others are plain dialogues.

    The steps of this course are many and small: reading two texts beside each other is learned by the number of steps.
    """
    rng = Random(seed)
    chats, writes, work_chats = dialogues(rng, hard), instruction_writing(rng), jobs(rng, bank=bank)
    while True:
        chance = rng.random()
        if chance < work:
            yield _chat(tokenizer, next(work_chats))
        else:
            yield _dialogue(tokenizer, next(chats if chance < 0.9 else writes), everything=False)


def fit(model: LlamaForCausalLM, pieces: Iterator[Piece], course: Course, log: Log, name: str) -> None:
    """Train on packed rows: Muon for the matrices inside, AdamW for embeddings and norms, linear decay to zero."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    optimizers = (
        torch.optim.Muon(inner, lr=course.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(outer, lr=course.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
    peaks, rows, started = (course.muon_lr, course.adam_lr), _packed(pieces, course.row), time.monotonic()
    model.train()
    for step in range(course.steps):
        share = min(1.0, (step + 1) / 50, (course.steps - step) / (0.7 * course.steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
        ids, counts = map(torch.tensor, zip(*islice(rows, course.rows), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (nll * counts[:, 1:].flatten()).sum() / counts[:, 1:].sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == course.steps - 1:
            seen = (step + 1) * course.rows * course.row
            log(f"{name} step {step} loss {loss.item():.3f} {seen / (time.monotonic() - started):.0f} tokens/s")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint in bfloat16 safetensors; generation stops at the end of a turn or of a document."""
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.to(torch.float32)


def _dialogue(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, everything: bool) -> Piece:
    user, assistant = dialogue
    prompt = tokenizer.encode(f"{START_TURN}user\n{user}{END_TURN}\n{START_TURN}assistant\n")
    reply = tokenizer.encode(f"{assistant}{END_TURN}")
    return prompt + reply, [float(everything)] * len(prompt) + [1.0] * len(reply)


def _chat(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> Piece:
    """The chat template's text in pieces; a learned turn is learned with its end, an open one goes on in the next."""
    ids, counts, going_on = list[int](), list[float](), False
    for turn in chat:
        head = [] if going_on else tokenizer.encode(f"{START_TURN}{turn.role}\n")
        text = tokenizer.encode(turn.text if turn.open else f"{turn.text}{END_TURN}")
        gap = [] if turn.open else tokenizer.encode("\n")
        ids += head + text + gap
        counts += [0.0] * len(head) + [turn.learn] * len(text) + [0.0] * len(gap)
        going_on = turn.open
    return ids, counts


def _packed(pieces: Iterator[Piece], row: int) -> Iterator[Piece]:
    """Cut the endless stream into rows of equal length."""
    ids, counts = list[int](), list[float]()
    for more_ids, more_counts in pieces:
        ids += more_ids
        counts += more_counts
        while len(ids) >= row:
            yield ids[:row], counts[:row]
            ids, counts = ids[row:], counts[row:]
