"""What a step may remember from run to run, and what it may see of other datasets, without knowing where it is kept."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import polars as pl

Kept = Literal["prompts", "completions"]


class Memory(Protocol):
    """Values that were worked out once, by content: an embedding, a score, a reference model's log-probabilities.

    A `kind` says what a value is and all it depends on beside its key: "embedding all-MiniLM-L6-v2 3f2a", not
    "embedding". A key is a hash of content (`factory.records.content_id`), so that a changed text is another key.
    """

    def get(self, kind: str, keys: Sequence[str]) -> "pl.DataFrame":
        """Columns key, value (binary): a row for each of the keys that is known, in no certain order."""
        ...

    def put(self, kind: str, frame: "pl.DataFrame") -> int:
        """Columns key, value (binary). What is known already stays as it is; returns how many rows were new."""
        ...


class Archive(Memory, Protocol):
    """A memory that also shows the records of other datasets, for steps that compare a new one with them.

    A record's `place` is its number in the order of coming into the store, whatever its dataset. The first place is 0.
    """

    @property
    def dataset(self) -> str:
        """The dataset that is being screened."""
        ...

    def open(self) -> AbstractContextManager[None]:
        """Several readings in a row are faster inside; nothing may be put meanwhile."""
        ...

    def values(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """All keys of a kind and their values, in no certain order."""
        ...

    def datasets(self, target: Kept) -> list[str]:
        """The datasets that hold prompts or completions."""
        ...

    def places(self, target: Kept, ids: "pl.Series") -> "pl.DataFrame":
        """Columns id, place: of records of the dataset that is being screened."""
        ...

    def after(self, target: Kept, dataset: str, kind: str) -> "Iterator[pl.DataFrame]":
        """Columns place, text, prompt, in pages: the records of a dataset that came after the greatest key of a kind,
        whose keys are places in digits of one length."""
        ...

    def records(self, target: Kept, places: "pl.Series") -> "pl.DataFrame":
        """Columns place, id: of the records at these places, those that no filter dropped, in order."""
        ...
