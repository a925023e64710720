"""Drops near-duplicates by an exact join: every pair of records that overlap by the threshold or more is found.

Source: the prefix filter of Chaudhuri, Ganti and Kaushik 2006, as All-Pairs (Bayardo, Ma and Srikant 2007) uses it for
Jaccard, with the bitmap filter of Sandes, Teodoro and Melo 2020. Departures: rows are peeled by priority instead of
uniting what is connected; sets are sorted in bulk instead of being indexed one by one; and where the join's candidates
or its memory would be too dear, MinHash proposes the pairs, which are still counted out one by one (see `method`).
"""

from contextlib import ExitStack
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from factory.options import step
from filters._join import Join
from filters._peel import Peel, first_of_copies
from filters._planner import proposed
from filters._spool import spool
from filters._verdicts import by_priority, originals, parts, verdicts


@step
class NearDuplicates:
    """Keep no two records whose runs of words overlap by `threshold` or more, and say which kept one each is like.

    Records are compared as sets of shingles: runs of `ngram` words, numbers and signs, in any script, Chinese by the
    character. A shorter text is one shingle. Rows are visited by priority, then in order of coming; a row is dropped
    only for a row that is itself kept, and its verdict names that row and their true Jaccard similarity. A copy of an
    earlier row shares its verdict.
    """

    target: Literal["prompts", "completions"] = "prompts"
    """Which records of a dataset it is given."""

    compare: Literal["prompt", "response", "both"] = "both"
    """What of a completion is compared; with `both`, prompts and responses must each reach the threshold."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Jaccard similarity of the shingles, above 0 to 1, from which on a record is a near-duplicate."""

    ngram: Annotated[int, Field(ge=1)] = 3
    """Words in a shingle; a text with fewer words is one shingle."""

    method: Literal["auto", "exact", "minhash"] = "auto"
    """How pairs are proposed; `auto` is exact unless that is too dear, and then tells why it is not."""

    def screen(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One verdict per row, in the order of the rows."""
        ranked = by_priority(frame)
        with ExitStack() as stack:
            # 1. Cut every text into shingles.
            spools = [stack.enter_context(spool(texts, self.ngram)) for texts in parts(ranked, self)]
            # 2. Set equal texts aside; find keys that all near-duplicates among the others have in common.
            first = first_of_copies(spools)
            sets, keys = proposed(spools, originals(first), self.threshold, self.method)
        # 3. Visit rows by priority: drop those near a kept one, counting the overlap out.
        peel = Peel(Join(sets), keys, len(first))
        return verdicts(frame, ranked, *peel.with_copies(first), self.threshold)
