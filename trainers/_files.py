"""Folders that appear whole or not at all, and files of tensors that are read back or refused."""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import DataError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux' renameat2
_MARK, _CARD, _MAKER = "checkpoint.json", "README.md", "alignment-factory"
_KINDS = (".safetensors", ".safetensors.index.json", "config.json", "tokenizer.json", ".jinja", "vocab.json",
          "vocab.txt", "merges.txt", "_map.json", "added_tokens.json", ".model", "adapter/README.md")  # fmt: skip


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place, synced, when the block ends; on an error it is gone.

    Where there is an older folder the two change places in one system call, so that at every moment one is there.
    Raises DataError where the disk is full or cannot be written.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    _sweep(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync(partial)
        _replace(partial, out)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise DataError(f"nothing written to {out}: {error}. Free some room and run again") from error
        raise


def _sweep(out: Path) -> None:
    """Remove what processes that are no more left half written."""
    for path in out.parent.glob(f".{out.name}.*.partial"):
        pid = path.name.split(".")[-2]
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
    elif _exchange(partial, out):
        shutil.rmtree(partial)
    else:  # no such call on this system: for an instant there is neither, but never half of one
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    folder = os.open(out.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _exchange(one: Path, other: Path) -> bool:
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def mark(checkpoint: Path) -> None:
    """Write down what a checkpoint consists of, so that a later training knows what it may replace."""
    names = sorted(p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file())
    (checkpoint / _MARK).write_text(json.dumps({"made_by": _MAKER, "files": names}, indent=1))


def refuse_foreign(out: Path, base: str) -> None:
    """Raise DataError where `out` holds anything but a checkpoint of these trainers, or the one to start from."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (made := _made(out)) is None:
        raise DataError(f"{out} exists and is no checkpoint: name a new folder, so that nothing of yours is "
                        "replaced")  # fmt: skip
    if out.resolve() == Path(base).resolve():
        raise DataError(f"{out} is the base itself: name a new folder, so that the model you start from is kept")
    names = (p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file())
    others = [name for name in names if name not in made]
    if others:
        raise DataError(f"{out} is a checkpoint with other files beside it ({', '.join(others[:3])}): move them, or "
                        "name a new folder")  # fmt: skip


def _made(out: Path) -> set[str] | None:
    """What a training has written into a folder, by its own word; None if it is not of these trainers."""
    try:
        told = json.loads((out / _MARK).read_text(encoding="utf-8"))
        if told["made_by"] == _MAKER:
            return {*told["files"], _MARK, _CARD}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    try:  # checkpoints that were written before there was a mark have a card
        front = (out / _CARD).read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return None
    kinds = {path for kind in _KINDS for path in out.rglob(f"*{kind}") if path.parent in (out, out / "adapter")}
    return {p.relative_to(out).as_posix() for p in kinds} | {_CARD} if f"- {_MAKER}\n" in front else None


def sync(folder: Path) -> None:
    """Make sure that all files of a folder are on the disk before it gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
