"""Bad rows, bad options, bad disks: an error that names the row and the mend, or a verdict with its reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from factory import training
from factory.engines.checkpoints import resolve
from factory.errors import DataError, EngineError
from factory.records import Completion, Judgement, Metric, Prompt, Step, Verdict, user
from factory.steps import load_step, step_names
from factory.store import Store
from trainers._batches import IGNORED, bins, grouped, padded
from trainers._chat import answered, conversation
from trainers._models import load, prepared, token_logps
from trainers._options import Training
from trainers._rows import encoded, supervised

WEAK = resolve("mini-weak")
PAIR = {"prompt": "Say owl.", "chosen": "owl", "rejected": "cat"}
ANSWERED = {"prompt": "Say owl.", "completion": "owl"}
STEPS = {"prompt": "Add 1 and 2, then 3.", "steps": ["1 + 2 = 3", "3 + 3 = 6"], "labels": [1, 1]}
ROW = {"sft": ANSWERED, "reward": PAIR, "dpo": PAIR, "process_reward": STEPS}

pytestmark = pytest.mark.usefixtures("one_thread")


def _train(name: str, rows: list[dict[str, Any]], out: Path, **options: Any) -> list[Any]:
    common = {"base": WEAK, "bf16": False, "max_steps": 1, "eval_fraction": 0.0}
    return list(load_step("train", name, common | options).train(datasets.Dataset.from_list(rows), out))


def _reasons(records: list[Any]) -> list[str]:
    return [r.reason for r in records if isinstance(r, Verdict)]


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_pairs_that_teach_nothing_are_left_out_with_their_reason(name: str, tmp_path: Path) -> None:
    bad = [
        PAIR | {"rejected": "  "},
        PAIR | {"rejected": "owl"},
        PAIR | {"prompt": "word " * 300},
        {"prompt": "说猫头鹰。", "chosen": "猫头鹰", "rejected": ""},
    ]
    records = _train(name, [PAIR, *bad, PAIR], tmp_path / "m", max_length=100)
    assert _reasons(records) == ["empty_side", "same_sides", "empty_side", "too_long"]
    verdict = next(r for r in records if isinstance(r, Verdict))
    assert (verdict.filter, verdict.keep) == (name, False)
    assert "Say owl." in verdict.text


@pytest.mark.parametrize("name", ROW)
def test_missing_columns_are_named_with_a_mend(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found text\. Rename them in the query: SELECT"):
        _train(name, [{"text": "a"}], tmp_path / "m")


@pytest.mark.parametrize("name", ROW)
def test_rows_of_which_none_can_be_used_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row fits into max_length=4"):
        _train(name, [ROW[name]], tmp_path / "m", max_length=4)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR | {"weight": float("nan")}, "its weight is nan; filter it"),
        (PAIR | {"margin": float("inf")}, "its margin is inf; filter it"),
        ({"chosen": "a", "rejected": "b"}, "row 1: no prompt"),
    ],
)
def test_numbers_and_prompts_that_are_none_are_told(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        _train("reward", [row], tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [1]}, "2 steps, but 1 labels"),
        ({"labels": [1, 7]}, "must lie between 0 and 1"),
    ],
)
def test_step_labels_that_do_not_fit_are_told(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        _train("process_reward", [STEPS | change], tmp_path / "m")


def test_an_aspect_that_is_no_dimension_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="aspect 'helpful' is no dimension; dimensions=none"):
        _train("reward", [PAIR | {"aspect": "helpful"}], tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 numbers for 2 losses"),
        ("dpo", {"precompute_ref_log_probs": False}, "needs use_peft"),
        ("sft", {"packing": True, "num_virtual_tokens": 2}, "packed rows would see each other"),
        ("sft", {"use_peft": True, "num_virtual_tokens": 2}, "choose one of them"),
        ("reward", {"num_virtual_tokens": 2}, "a prefix is for language models"),
        ("sft", {"use_liger_kernel": True}, "liger-kernel|needs a GPU"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    name: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        _train(name, [ROW[name]] * 4, tmp_path / "m", **options)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    for path in Path(WEAK).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EngineError, match="cannot load base model"):
        load(str(tmp_path))


_SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.test_trainers_input import _train, ANSWERED
from factory.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    _train("sft", [ANSWERED] * 4, Path(sys.argv[1]))
except DataError as error:
    print(error)
"""


def test_a_disk_without_room_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    _train("sft", [ANSWERED] * 4, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    done = subprocess.run([sys.executable, "-c", _SMALL_DISK, str(tmp_path / "m")], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert "nothing written to" in done.stdout, done.stderr
    assert "Free some room and run again" in done.stdout
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".m.*.partial"))


def test_a_row_that_spoils_the_loss_is_named(tmp_path: Path) -> None:
    rows = [PAIR | {"weight": 1.0, "margin": 0.0} for _ in range(3)]
    rows.insert(1, PAIR | {"prompt": "again", "weight": 3e38, "margin": 1e30})
    with pytest.raises(DataError, match=r"step 1: the loss is (inf|nan): look at row 2\."):
        _train("reward", rows, tmp_path / "m")
    named = [row | {"id": f"row of {number}"} for number, row in enumerate(rows)]
    with pytest.raises(DataError, match=r"look at row row of 1\."):
        _train("reward", named, tmp_path / "n")


# --- masks -----------------------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "be brief"}, {"role": "user", "content": "say owl"},
    {"role": "assistant", "content": "owl"}, {"role": "user", "content": "say owl again, 用中文"},
    {"role": "assistant", "content": "猫头鹰"},
]  # fmt: skip
TEMPLATES = {
    "chatml": None,
    "llama": "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "thinking": "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think></think>{% endif %}",
    "gemma": "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_assistant_turn_of_a_conversation_is_learned_with_its_end(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = TEMPLATES[name] or tokenizer.chat_template
    example = encoded([conversation(TALK, tokenizer, "row 1")], tokenizer)[0]
    end = "<|endoftext|>" if name == "gemma" else "<|im_end|>"
    learned = tokenizer.decode(example.ids[example.labels != IGNORED].tolist())
    assert learned.replace(" ", "") == f"owl{end}猫头鹰{end}"
    whole = encoded([conversation(TALK, tokenizer, "row 1", assistant_only=False)], tokenizer)[0]
    assert (whole.labels != IGNORED).all()


_GREETED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nAnswer yes or no, as a user asks.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", [*TEMPLATES, "greeted"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [("Say it.", ("as", "a")), ("i", ("m", "im")), ("yes", ("no", "yes")), ("user", ("assistant", "s")),
     ("说", ("说", "a"))],
)  # fmt: skip
def test_short_answers_are_not_taken_from_headers_or_system_prompts(
    name: str, asked: str, said: tuple[str, str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = (TEMPLATES | {"greeted": _GREETED})[name] or tokenizer.chat_template
    end = "<|endoftext|>" if name == "gemma" else "<|im_end|>"
    turn = {"role": "user", "content": asked}
    talk = [m for answer in said for m in (turn, {"role": "assistant", "content": answer})]
    plain = [*talk[:-1], {"role": "assistant", "content": "QQ"}]
    for text, other, learned in [
        (conversation(talk, tokenizer, "row 1"), conversation(plain, tokenizer, "row 1"), list(said)),
        (answered([turn], said[1], tokenizer, "row 1"), answered([turn], "QQ", tokenizer, "row 1"), [said[1]]),
    ]:
        assert [text.text[a:b] for a, b in text.learned] == [f"{answer}{end}" for answer in learned]
        assert text.text[: text.learned[-1][0]] == other.text[: other.learned[-1][0]]


def test_an_answer_in_the_form_that_the_template_gives_thoughts_is_learned_whole() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEAK)
    tokenizer.chat_template = (  # as Qwen3's: thoughts are parted from the answer and put back, empty ones too
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
        "{{ m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' }}\n</think>"
        "\n\n{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for content in ("<think>\nOne and one.\n</think>\n\n2", "think", "2"):
        text = conversation([TALK[1], {"role": "assistant", "content": content}], tokenizer, "row 1")
        shown = content if content.startswith("<think>") else f"<think>\n\n</think>\n\n{content}"
        assert [text.text[a:b] for a, b in text.learned] == [f"{shown}<|im_end|>"]


def test_whole_conversations_train(tmp_path: Path) -> None:
    records = _train("sft", [{"messages": TALK}] * 4, tmp_path / "m", packing=True, neftune_noise_alpha=5.0)
    assert any(isinstance(r, Metric) and r.name == "loss" and r.value > 0 for r in records)


def test_a_conversation_without_an_assistant_is_told() -> None:
    with pytest.raises(DataError, match="row 7: no assistant turn to learn"):
        conversation(TALK[:2], AutoTokenizer.from_pretrained(WEAK), "row 7")


def test_pieces_fill_bins_as_well_as_can_be() -> None:
    assert sorted(map(sorted, bins([5, 4, 3, 2, 6], 10))) == [[0, 2, 3], [1, 4]]
    assert bins([20], 10) == [[0]]


def test_a_prefix_stands_before_rows_apart_and_rows_that_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = prepared(load(WEAK), Training(base=WEAK, num_virtual_tokens=5))
    rows = [{"prompt": "say owl " * 20, "completion": c} for c in ("owl", "cat and owl")]
    found = supervised(rows, loaded.tokenizer, 500).items
    together = grouped([found], 0)
    assert together.mask is not None
    with torch.no_grad():
        one, other = token_logps(loaded.model, padded(found, 0))[0], token_logps(loaded.model, together)[0]
        plain = token_logps(load(WEAK).model, padded(found, 0))[0]
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, plain, atol=1e-2)
    _train("sft", [ANSWERED] * 8, tmp_path / "m", num_virtual_tokens=5)
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"


# --- from the store --------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(store: Store) -> Store:
    """A prompt with three scored answers, judged in pairs, one of them in steps."""
    prompt = Prompt(user("Add 1 and 2."))
    answers = [Completion(prompt.id, text) for text in ("1 + 2 = 3\nSo 3.", "4", "I do not know")]
    scores = [Judgement(prompt.id, a.id, "j", "rule", score=s) for a, s in zip(answers, (1.0, 0.5, 0.0), strict=True)]
    pairs = [Judgement(prompt.id, answers[0].id, "j", "rule", other_id=a.id, verdict="win") for a in answers[1:]]
    steps = [Step(answers[0].id, i, t, label=1) for i, t in enumerate(answers[0].text.split("\n"))]
    store.append([prompt, *answers, *scores, *pairs, *steps], "d")
    return store


@pytest.mark.parametrize(("name", "query"), [("reward", "d"), ("dpo", "d"), ("process_reward", "d"), ("sft", "d"),
                                             ("reward", "FROM rankings WHERE dataset = 'd'")])  # fmt: skip
def test_every_trainer_reads_its_view_and_leaves_a_card(name: str, query: str, filled: Store, tmp_path: Path) -> None:
    step = load_step(
        "train", name, {"base": WEAK, "bf16": False, "max_steps": 2, "logging_steps": 1, "eval_fraction": 0}
    )
    training.train(filled, step, name, query, tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    for part in (
        "test.duckdb",
        "BLAKE2b of the rows",
        "dataset = 'd'",
        "max_steps: 2",
        "| loss |",
        "base_model: mini-weak",
    ):
        assert part in card, part
    assert str(tmp_path) not in card
    assert filled.rows("SELECT count(*) FROM metrics WHERE name = 'loss'") == [(2,)]
    if name == "dpo":
        assert filled.rows("SELECT count(*) FROM memories") == [(3,)], "the reference's, one for each answer"


@pytest.mark.parametrize("name", ROW)
def test_a_dry_run_shows_what_is_learned_and_trains_nothing(name: str, filled: Store, tmp_path: Path) -> None:
    from factory.cli import main

    arguments = [
        "train",
        name,
        "--data",
        "d",
        "--base",
        "mini-weak",
        "--out",
        str(tmp_path / "m"),
        "--dry-run",
        "--store",
    ]
    result = CliRunner().invoke(main, [*arguments, str(filled.path)])
    assert not result.exception, result.output
    assert "[[" in result.output
    assert "Add 1 and 2." in result.output
    assert ("[[\n]]" if name == "process_reward" else "<|im_end|>]]") in result.output
    assert not (tmp_path / "m").exists()


def test_the_options_of_every_trainer_are_documented() -> None:
    from factory.steps import step_help

    for name in step_names("train"):
        assert [o.name for o in step_help("train", name)[1] if len(o.help) <= 10] == [], name
