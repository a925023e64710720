"""MinHash signatures of all rows at once, bit for bit those of datasketch 2.0, and their bands.

Source: Broder 1997; the permutations `a * h + b` modulo 2^32 behind MurmurHash3's finaliser are datasketch's scheme
"affine32" (2.0). Departures: one permutation at a time over thousands of shingles instead of one row at a time over all
permutations; and rows that share a band are found by sorting, not in a dictionary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from filters._sets import LOW, in_common
from filters._shingles import U64, mixed
from filters._spool import Spool

U32 = npt.NDArray[np.uint32]
_PORTION = 1 << 16  # shingles whose numbers under one permutation stay in the processor's cache
_PROMPT = np.uint32(0x9E3779B9)  # tells a prompt's shingles from a response's


def permutations(num_perm: int, seed: int) -> U32:
    """(2, num_perm): the factors and summands that `datasketch.MinHash(num_perm, seed)` draws."""
    draw = np.random.RandomState(seed)
    factors = draw.randint(0, 1 << 31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.array([factors, draw.randint(0, 1 << 32, num_perm, dtype=np.uint32)])


def token_hashes(shingles: U64) -> U32:
    """The 32 bits of a shingle that its signature is made of: what datasketch calls `hashfunc`."""
    return shingles.astype("<u8", copy=False).view("<u4")[1::2]


def _sign(hashes: U32, offsets: npt.NDArray[np.int64], functions: U32, out: U32) -> None:
    """Row i has the hashes from offsets[i] to offsets[i + 1], at least one; out[:, i] becomes its signature."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _PORTION, side="right")) - 1)
        portion = _fmix(hashes[offsets[first] : offsets[last]].copy())
        starts, numbers = offsets[first:last] - offsets[first], np.empty_like(portion)
        for factor, summand, least in zip(*functions, out, strict=True):
            np.multiply(portion, factor, out=numbers)
            np.add(numbers, summand, out=numbers)
            np.minimum.reduceat(numbers, starts, out=least[first:last])
        first = last


def _fmix(hashes: U32) -> U32:
    """MurmurHash3's finaliser of 32 bits, in place."""
    for bits, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes ^= hashes >> np.uint32(bits)
        hashes *= np.uint32(factor)
    hashes ^= hashes >> np.uint32(16)
    return hashes


def signatures_of(spools: Sequence[Spool], num_perm: int, seed: int) -> U32:
    """(num_perm, rows): of rows whose parts were spooled. If every part of two rows reaches a Jaccard similarity, so
    do their parts taken together: the signature of a row with two parts is of their union, the least of both."""
    found, functions = np.empty((num_perm, len(spools[0].sizes)), np.uint32), permutations(num_perm, seed)
    for number, spool in enumerate(spools):
        for first, piece in spool.pieces():
            some, hashes = found[:, first : first + len(piece.offsets) - 1], token_hashes(piece.hashes)
            if not number:
                _sign(hashes, piece.offsets, functions, some)
                continue
            more = np.empty_like(some)
            _sign(hashes ^ _PROMPT, piece.offsets, functions, more)
            np.minimum(some, more, out=some)
    return found


def bands(threshold: float, num_perm: int, recall: float) -> tuple[int, int]:
    """(bands, rows per band): the longest bands that still propose a pair at the threshold with a chance of `recall`.

    Bands of one row if none reach that: `num_perm` is then too small for so low a threshold.
    """
    longest = range(num_perm // 2, 1, -1)
    rows = next((r for r in longest if 1 - (1 - threshold**r) ** (num_perm // r) >= recall), 1)
    return num_perm // rows, rows


def band_keys(found: U32, number: int, rows: int) -> U64:
    """(bands, rows): one number for each band of each signature; equal bands have equal numbers."""
    keys = np.empty((number, found.shape[1]), np.uint64)
    for band in range(number):
        key = np.full(found.shape[1], band, np.uint64)
        for row in found[band * rows : (band + 1) * rows]:
            key = mixed(key + row)
        keys[band] = key
    return keys


def banded(keys: U64, rows: npt.NDArray[np.int64]) -> U64:
    """Postings (key << 32 | row) of the bands that more than one of the rows has, sorted; keys are numbered anew."""
    bits = np.uint64(max(keys.shape[1].bit_length(), 1))
    low = (np.uint64(1) << bits) - np.uint64(1)
    postings, numbered = [np.empty(0, np.uint64)], np.uint64(0)
    for key in keys[:, rows]:
        packed = np.sort((key & ~low) | rows.view(np.uint64))
        packed = packed[in_common(packed, low)]
        new = np.append(True, (packed[1:] ^ packed[:-1]) > low)[: len(packed)]
        postings.append((numbered + np.cumsum(new, dtype=np.uint64)) << LOW | (packed & low))
        numbered += np.uint64(new.sum())
    return np.concatenate(postings)
