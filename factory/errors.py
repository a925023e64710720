"""What can go wrong, told to people: every message says what, where and how to mend it.

FactoryError
├── SpecError    the spec or an option is wrong            exit 2
├── DataError    a file, a row or a query is wrong         exit 2
├── AuditError   an audit found violations                 exit 1
├── BudgetError  the budget is used up; nothing is lost    exit 1
├── EngineError  a model or its server failed              exit 3
└── StoreError   the store cannot be opened or written     exit 3
"""

from difflib import get_close_matches
from typing import ClassVar


class FactoryError(Exception):
    """Base of all errors that a user can act on. Anything else that escapes is a bug."""

    exit_code: ClassVar[int] = 3


class SpecError(FactoryError):
    """The spec, a step's options or the command line are wrong."""

    exit_code = 2


class DataError(FactoryError):
    """A file, a row or a query of the user's is wrong."""

    exit_code = 2


class AuditError(FactoryError):
    """An audit returned violations."""

    exit_code = 1


class BudgetError(FactoryError):
    """The next call would pass the budget. All that was answered is stored; a larger budget resumes from there."""

    exit_code = 1


class EngineError(FactoryError):
    """An engine is dead, not a single request: a server that is gone, a key refused, a model that does not load."""


class StoreError(FactoryError):
    """The store cannot be opened, read or written."""


def nearest(word: str, known: list[str]) -> str:
    """A hint that names the nearest known word, or all of them: `did you mean 'threshold'?`."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
