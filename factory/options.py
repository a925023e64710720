"""`@step` turns a class into a step: its fields are its YAML keys, its help and its documentation, declared once."""

from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def step(cls: type[T]) -> type[T]:
    """A frozen, keyword-only pydantic dataclass that refuses unknown options and reads field docstrings as help."""
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)
    return dataclass(cls, frozen=True, kw_only=True, config=config)  # type: ignore[return-value]
