"""The one normal form, tokeniser and language guess that every filter and generator compares texts by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from factory.text import jaccard, language, ngrams, normalise, shingles, words

ANYTHING = st.text(st.characters(codec=None), max_size=60)  # every code point, lone surrogates and NUL too
HOSTILE = {
    "empty": "",
    "blank": " \t\n\u3000\u00a0",
    "NUL": "a\x00b",
    "lone surrogate": "a\ud800b",
    "only a lone surrogate": "\udfff",
    "family emoji": "👨‍👩‍👧 👍🏽",
    "right to left": "\u202eאבג مرحبا\u202c",
    "stacked marks": "e" + "\u0301" * 50,
    "unassigned": "\U000e0001\uffff\U0010ffff",
    "zero width": "\u200b\u200d\ufeff",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_has_words_shingles_and_a_language_without_a_crash(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert all(words(text)), "no word is empty"
    assert len(shingles(text)) >= 1, "no text is skipped by near-duplicate search"
    assert language(text) in {"zh", "ja", "ko", "ru", "ar", "en", ""}


@given(ANYTHING)
def test_normalising_twice_changes_nothing_whatever_the_text(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()
    assert "  " not in once


@given(ANYTHING, st.integers(1, 5))
def test_words_and_shingles_see_only_the_normal_form(text: str, n: int) -> None:
    assert words(text) == words(normalise(text))
    assert shingles(text, n) == shingles(normalise(text), n)
    assert jaccard(shingles(text, n), shingles(text, n)) == 1.0


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_ascii_words_are_the_tokens_of_rouge_itself(text: str) -> None:
    assert words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Hello\t\n WORLD ", "hello world"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ，１２", "full width,12"),
        ("STRASSE Straße", "strasse strasse"),
        ("请\u3000写：ＡＢＣ！", "请 写:abc!"),
        ("ｱｲｳ", "アイウ"),
        ("e\u0301", "é"),
        ("ﬁne ①", "fine 1"),
    ],
)
def test_the_normal_form_folds_case_width_and_white_space(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop: 3.5 times!", ["don", "t", "stop", "3", "5", "times"]),
        ("请把GPT4翻译成英文。", ["请", "把", "gpt4", "翻", "译", "成", "英", "文"]),
        ("café naïve", ["café", "naïve"]),
        ("\U00020000𠮷野家", ["\U00020000", "𠮷", "野", "家"]),
        ("カタカナと안녕", ["カ", "タ", "カ", "ナ", "と", "안", "녕"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مَرْحَبًا بك", ["مَرْحَبًا", "بك"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("snake_case", ["snake", "case"]),
        ("a\x00b", ["a", "b"]),
        ("👍 。，！", []),
        ("\ud800", []),
    ],
)
def test_words_are_whole_in_alphabets_and_single_characters_in_cjk(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is 12 + 7?", "What is 12 - 7?"),
        ("What is 12 * 7?", "What is 12 / 7?"),
        ("计算 12＋7", "计算 12×7"),
        ("Explain C", "Explain C#"),
        ("Write a tweet 😀", "Write a tweet 😢"),
        ("It costs $5", "It costs €5"),
        ("今天天气好", "今天天气坏"),
        ("!", "?"),
    ],
)
def test_signs_numbers_and_emoji_tell_shingles_apart(left: str, right: str) -> None:
    assert shingles(left) != shingles(right)
    assert jaccard(shingles(left), shingles(right)) < 1


def test_punctuation_case_and_width_do_not_tell_shingles_apart() -> None:
    assert shingles("Name three fruits, please.") == shingles("name THREE fruits please!")
    assert shingles("请列出三种水果。") == shingles("请列出三种水果！")
    assert shingles("- one\n- two") == shingles("one two"), "a bullet is mark-up, not a minus"


def test_a_text_shorter_than_a_shingle_is_one_shingle() -> None:
    assert shingles("Thank you") == {"thank you"}
    assert shingles("谢谢") == {"谢 谢"}
    assert shingles("...") == {"..."}
    assert shingles("") == {""}
    assert shingles("one two three four") == {"one two three", "two three four"}


def test_ngrams_are_all_runs_in_order_and_none_of_too_few_tokens() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a poem about the sea.", "en"),
        ("¿Dónde está el baño?", "en"),
        ("写一首关于大海的诗。", "zh"),
        ("請寫一首關於大海的詩", "zh"),
        ("请解释一下 HTTP 和 TCP 的区别", "zh"),
        ("用Python写一个函数", "zh"),
        ("Translate 你好 into English please", "en"),
        ("日本語で詩を書いてください", "ja"),
        ("请解释日语的“の”和中文的“的”在用法上有什么不同之处", "zh"),
        ("ひらがな", "ja"),
        ("바다에 대한 시를 써 주세요", "ko"),
        ("Напиши стихотворение о море", "ru"),
        ("اكتب قصيدة عن البحر", "ar"),
        ("Γράψε ένα ποίημα", ""),
        ("12 + 7 = ?", ""),
        ("😀👍", ""),
        ("", ""),
        ("\x00\ud800", ""),
    ],
)
def test_the_language_is_the_one_most_of_the_text_is_written_in(text: str, expected: str) -> None:
    assert language(text) == expected


def test_jaccard_of_sets_is_the_shared_part() -> None:
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard({"a"}, {"b"}) == 0.0
    assert jaccard(set(), set()) == 0.0
