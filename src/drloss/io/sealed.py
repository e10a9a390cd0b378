"""Sealed files: the content that ``torch.save`` writes, and after it a checksum of that content.

The seal is 72 bytes: ``sha256``, a space, 64 hexadecimal digits and a new line. A zip archive's own checksums do not
cover its headers and padding, and a checksum in a second file could be older or newer than the first.
``torch.load`` reads a sealed file as it is, and ``head -c -72 FILE | sha256sum`` checks it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from drloss.errors import UserError
from drloss.io.atomic import write_atomic
from drloss.io.untrusted import read_pt

_SEAL = 72
"""Bytes of the seal."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, check what is on the disk, and only then put it in place of an older file.

    Raises:
        UserError: if the file cannot be written; an older one is left as it was.
    """

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            hashed = _HashedFile(file)
            try:
                torch.save(dict(content), hashed)  # type: ignore[arg-type]
            except RuntimeError:  # torch raises this when the file refuses a write
                raise hashed.failure or OSError("torch.save did not finish") from None
            file.write(hashed.seal())

    write_atomic(path, write, check=lambda beside: read_sealed(beside, mmap=True))


def read_sealed(path: Path, *, mmap: bool = False) -> Any:
    """The content of a sealed file; see :func:`drloss.io.untrusted.read_pt`.

    Raises:
        UserError: if the seal does not match the content, or the content cannot be read.
    """
    if not is_whole(path):
        raise UserError(f"{path}: cut off or altered: its checksum is not that of its content")
    return read_pt(path, mmap=mmap)


def is_whole(path: Path) -> bool:
    """Whether the seal of a file matches its content."""
    digest = hashlib.sha256()
    left = path.stat().st_size - _SEAL
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        return file.read() == _seal(digest.hexdigest())


def _seal(digest: str) -> bytes:
    return f"sha256 {digest}\n".encode()


class _HashedFile:
    """A file that computes the SHA-256 of what is written to it, and keeps the error of a failed write."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> bytes:
        return _seal(self.digest.hexdigest())
