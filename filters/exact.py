"""Drops records that say exactly what another one says, up to case, width and white space."""

from typing import Literal

import polars as pl

from factory.options import step
from factory.text import normalise


@step
class Exact:
    """Keep one of every group of equal records: the one of highest priority, then the first.

    Equal means equal after NFKC, case folding and collapsing white space; punctuation and numbers count. Every drop
    names the kept record as its evidence.
    """

    target: Literal["prompts", "completions"] = "prompts"
    """Which records to compare; completions are equal only if their prompts are, too."""

    def screen(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One verdict per row, in the order of the rows."""
        columns = ("text",) if self.target == "prompts" else ("prompt", "text")
        priority = pl.col("priority").cast(pl.Float64).fill_nan(None)
        ranked = (
            frame.select("id", priority, *(normalised(frame[name]) for name in columns))
            .with_row_index("row")
            .sort("priority", descending=True, nulls_last=True, maintain_order=True)
            .with_columns(pl.col("row", "id").first().over(columns).name.prefix("kept_"))
            .sort("row")
        )
        keep = pl.col("row") == pl.col("kept_row")
        return ranked.select(
            "id",
            keep=keep,
            reason=pl.when(keep).then(pl.lit("")).otherwise(pl.lit("duplicate")),
            score=pl.when(~keep).then(1.0),
            threshold=pl.lit(None, pl.Float64),
            evidence_id=pl.when(keep).then(pl.lit("")).otherwise("kept_id"),
        )


def normalised(texts: pl.Series) -> pl.Series:
    """`factory.text.normalise` of every text. Polars does the ASCII ones, where lower case is all of case folding."""
    texts = texts.fill_null("")
    plain = texts.str.to_lowercase().str.replace_all(r"[\t-\r\x1c-\x20]+", " ").str.strip_chars(" ")
    wide = texts.str.len_bytes() != texts.str.len_chars()
    return plain.scatter(wide.arg_true(), [normalise(text) for text in texts.filter(wide)])
