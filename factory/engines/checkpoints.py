"""Checkpoints: what a model's name stands for, and a fingerprint of what it holds.

The journal keys replies by fingerprint, so two checkpoints of one name must never share one.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from factory.errors import SpecError, nearest

BUNDLED = Path(__file__).parent.parent / "mini" / "checkpoints"

_PARTS = (
    "config.json", "generation_config.json", "adapter_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer*", "vocab.*", "merges.txt", "*.tiktoken", "*.model", "*chat_template*", "additional_chat_templates/*",
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_model*.bin",
)  # fmt: skip
_WHOLE = 64 << 20  # bytes: files up to this size are hashed whole
_EDGE = 1 << 20  # bytes read at the start and the end of a larger file
_BETWEEN, _SAMPLE = 62, 1 << 16  # pieces read in between, and the bytes of each
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(model: str) -> str:
    """The folder that `model` names: as it is, or bundled with the package; any other hub name comes back unchanged.

    Raises SpecError where it can only be a folder and there is none.
    """
    path = Path(model).expanduser()
    if model and path.is_dir():
        return str(path)
    if model and path.name == model and (BUNDLED / model).is_dir():
        return str(BUNDLED / model)
    if model.startswith((os.sep, "./", "../", "~")) or not _HUB_NAME.fullmatch(model):
        known = [p.name for p in BUNDLED.glob("*") if p.is_dir()]
        raise SpecError(f"model: no such folder {model!r}. Give a checkpoint's folder, a hub name or a bundled one "
                        f"({nearest(model, known)})")  # fmt: skip
    return model


def fingerprint(model: str) -> str:
    """A name for the model's content: `mini-strong-1a2b3c4d` for a folder, `owner/name@commit` for the hub.

    A folder is hashed over its configuration, tokenizer, chat template and weights. Of a file over 64 MB the size, the
    first and last MB and 62 pieces between are hashed: reading 16 GB before each run would cost half a minute, and
    training changes all layers. Both ends alone are not enough: safetensors puts the embeddings first and the last
    norm last, just what adapters and partial fine-tuning leave as it was. A hub name without a cached snapshot comes
    back as it is. Raises SpecError where the folder is missing or holds no checkpoint.
    """
    path = Path(resolve(model))
    return f"{path.resolve().name}-{_digest(path)}" if path.is_dir() else model + _commit(model)


def _digest(folder: Path) -> str:
    files = sorted({f for f in chain.from_iterable(map(folder.glob, _PARTS)) if f.is_file()})
    if not any(f.suffix in (".safetensors", ".bin") for f in files):
        raise SpecError(f"model: {str(folder)!r} is not a checkpoint: it holds no .safetensors file")
    hashed = hashlib.blake2b(digest_size=4)
    for file in files:
        size = file.stat().st_size
        hashed.update(f"{file.relative_to(folder).as_posix()}\x1f{size}\x1f".encode())
        with file.open("rb") as stream:
            for piece in _pieces(stream, size):
                hashed.update(piece)
    return hashed.hexdigest()


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    if size <= _WHOLE:
        while piece := stream.read(_EDGE):
            yield piece
        return
    yield stream.read(_EDGE)
    for place in range(1, _BETWEEN + 1):
        stream.seek(size * place // (_BETWEEN + 1))
        yield stream.read(_SAMPLE)
    stream.seek(size - _EDGE)
    yield stream.read(_EDGE)


def _commit(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return f"@{Path(config).parent.name[:8]}" if isinstance(config, str) else ""
