"""MinHash: signatures that are datasketch's bit for bit, bands of a wanted recall, and no false drop."""

import json
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.text import jaccard, shingles
from filters._shingles import shingle_hashes
from filters._signatures import band_keys, banded, bands, permutations, signatures_of, token_hashes
from filters._spool import spool
from filters.minhash import Minhash, token_hash
from tests.near_help import chinese, english, frame, true_pairs, with_edits

ENGLISH = "Write a short story about a lighthouse keeper who finds a message in a bottle on the beach"
CHINESE = "请写一个关于灯塔看守人在海滩上发现漂流瓶里一封旧信的短篇故事"
SMALL = st.lists(st.text("ab c你我好", max_size=14), max_size=14)


# -- signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_perm", "seed"), [(16, 1), (128, 1), (128, 7), (256, 42)])
def test_the_permutations_are_datasketchs(num_perm: int, seed: int) -> None:
    assert (permutations(num_perm, seed) == MinHash(num_perm, seed=seed).permutations).all()


def test_signatures_of_alpaca_are_datasketchs_bit_for_bit(shared: Path) -> None:
    rows = json.loads((shared / "alpaca_9k.json").read_text(encoding="utf-8"))
    texts = ["\n".join(filter(None, (row["instruction"], row["input"], row["output"]))) for row in rows]
    with spool(pl.Series(texts), 3) as spooled:
        found = signatures_of([spooled], 128, 1)
    tokens = [token_hashes(shingle_hashes(sorted(shingles(text)))).tolist() for text in texts]
    theirs = MinHash.generator(tokens, num_perm=128, hashfunc=lambda token: token)
    for row, sketch in enumerate(theirs):
        assert (found[:, row] == sketch.hashvalues).all()


def test_datasketch_makes_the_same_signature_with_our_token_hash() -> None:
    theirs = MinHash(64, seed=3, hashfunc=token_hash)
    theirs.update_batch(shingle.encode() for shingle in shingles(CHINESE + ENGLISH))
    with spool(pl.Series([CHINESE + ENGLISH]), 3) as spooled:
        assert (signatures_of([spooled], 64, 3)[:, 0] == theirs.hashvalues).all()


def test_an_index_for_datasketch_answers_its_queries() -> None:
    lsh = Minhash(threshold=0.5).index(frame(ENGLISH, CHINESE, "Name a fruit."))
    asked = MinHash(128, seed=1, hashfunc=token_hash)
    asked.update_batch(shingle.encode() for shingle in shingles(CHINESE + "，谢谢"))
    assert lsh.query(asked) == ["1"]


# -- bands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.9, 1.0])
def test_bands_propose_a_pair_at_the_threshold_with_the_wanted_chance(threshold: float) -> None:
    number, rows = bands(threshold, 128, 0.99)
    assert number * rows <= 128
    assert rows == 1 or 1 - (1 - threshold**rows) ** number >= 0.99


def test_postings_are_the_rows_that_share_a_band() -> None:
    signatures = np.array([[1, 1, 9, 1], [2, 2, 9, 2], [5, 6, 6, 7], [5, 8, 8, 7]], np.uint32)
    found = banded(band_keys(signatures, 2, 2), np.array([0, 1, 2]))
    rows = [[int(p) & 0xFFFFFFFF for p in found if int(p) >> 32 == key] for key in {int(p) >> 32 for p in found}]
    assert sorted(rows) == [[0, 1], [1, 2]]


# -- the filter --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SMALL, st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.integers(1, 3))
def test_a_near_duplicate_names_a_live_kept_row_whose_true_jaccard_reaches_the_threshold(
    texts: list[str], threshold: float, ngram: int
) -> None:
    told = Minhash(threshold=threshold, ngram=ngram, num_perm=64).screen(frame(*texts))
    kept = set(told.filter("keep")["id"])
    for id, keep, reason, score, limit, evidence in told.iter_rows():
        assert limit == threshold
        assert (keep, reason, score is None, evidence == "") == (keep, "" if keep else "near_duplicate", keep, keep)
        if not keep:
            assert score == jaccard(shingles(texts[int(id)], ngram), shingles(texts[int(evidence)], ngram)) >= threshold
            assert evidence in kept


@settings(max_examples=30, deadline=None)
@given(SMALL, st.randoms(use_true_random=False))
def test_given_priorities_the_order_of_the_rows_does_not_matter(texts: list[str], rng: Random) -> None:
    rows = frame(*texts, priorities=[float(i) for i in range(len(texts))])
    told = Minhash(threshold=0.5, num_perm=64).screen(rows)
    mixed = Minhash(threshold=0.5, num_perm=64).screen(rows.sample(fraction=1, shuffle=True, seed=rng.randrange(999)))
    assert told.sort("id").equals(mixed.sort("id"))


def test_a_long_answer_in_common_does_not_make_up_for_other_prompts() -> None:
    answer = " ".join(f"w{i}" for i in range(200))
    rows = frame(answer, answer, prompts=["What is this?", "Name all the words you know."])
    assert Minhash(target="completions").screen(rows)["reason"].to_list() == ["", ""]
    assert Minhash(target="completions", compare="response").screen(rows)["reason"].to_list() == ["", "near_duplicate"]


@pytest.mark.parametrize(("text", "longer"), [(ENGLISH, ENGLISH + " one day"), (CHINESE, CHINESE + "，谢谢")])
def test_a_few_words_more_are_a_near_duplicate_with_its_true_similarity(text: str, longer: str) -> None:
    told = Minhash().screen(frame("Something else entirely", text, longer)).row(2, named=True)
    assert (told["reason"], told["evidence_id"]) == ("near_duplicate", "1")
    assert told["score"] == jaccard(shingles(text), shingles(longer)) >= told["threshold"] == 0.7


def test_minhash_keeps_the_row_of_highest_priority_whatever_its_place() -> None:
    rows = frame(ENGLISH, ENGLISH + " one day", CHINESE, ENGLISH.upper(), priorities=[0.1, 0.9, None, float("nan")])
    told = Minhash().screen(rows)
    assert told["reason"].to_list() == ["near_duplicate", "", "", "near_duplicate"]
    assert told["evidence_id"].to_list() == ["1", "", "", "1"]


@pytest.mark.parametrize("read", [english, chinese])
def test_nearly_all_true_pairs_of_real_rows_are_found_and_nothing_else(shared: Path, read: object) -> None:
    assert callable(read)
    texts, _ = with_edits(Random(2).sample(read(shared), 800), 400, 2)
    told = Minhash(recall=0.999).screen(frame(*texts))
    truth = true_pairs(texts, 0.7)
    missed = [pair for pair in truth if told["keep"][pair[0]] and told["keep"][pair[1]]]
    assert len(missed) <= 0.002 * len(truth)
    for row in told.filter(~pl.col("keep")).iter_rows(named=True):
        assert truth[int(row["id"]), int(row["evidence_id"])] == row["score"]


@pytest.mark.parametrize(("option", "value"), [("threshold", 0), ("threshold", 1.1), ("num_perm", 4), ("ngrams", 3)])
def test_wrong_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValidationError, match=option):
        Minhash(**{option: value})
