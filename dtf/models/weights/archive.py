"""Files of torch.save, read as what they are here: tensors in plain containers, no larger than the file.

``torch.load(weights_only=True)`` calls no function that a file chooses, but for a few dozen that it takes for
harmless; some of them allocate what the file asks for, and so do compressed entries. Both are refused here.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

# "module name", as pickle's protocol 2 writes it; what torch.save needs for tensors, and plain containers.
_NAMES = re.compile(
    r"collections OrderedDict|collections Counter|(builtins|__builtin__) (set|complex)|_codecs encode"
    r"|torch (Size|device|bool|[a-z]+\d\w*|\w+Storage)"
    r"|torch\._utils (_rebuild_tensor(_v2)?|_rebuild_parameter)"
)
# Other ways to name something to call.
_REFUSED = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys of the tensors


class UnsafeArchive(ValueError):
    """A file that names code, or asks for more memory than its own size."""


def load_archive(path: Path, mmap: bool = False, legacy: bool = False) -> Any:
    """Returns what ``torch.save`` wrote; nothing in the file is executed.

    Args:
        path: An existing file.
        mmap: Whether tensors stay on disk until they are used.
        legacy: Whether files from before torch 1.6, which are no zip archives, are read as well.

    Raises:
        UnsafeArchive: It holds something else than tensors and plain data, compressed entries, or tensors
            that are larger than the file.
        ValueError: It is no such file, or a damaged one.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                _check_zip(file)
            elif legacy:
                file.seek(0)
                for _ in range(_LEGACY_PICKLES):
                    _check_pickle(file)
                mmap = False
            else:
                raise ValueError("it is no zip archive, as torch.save writes them")
        except UnsafeArchive:
            raise
        except Exception as error:  # the libraries meet bytes of any kind with errors of any kind
            raise ValueError(_reason(error)) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # as above
        raise ValueError(_reason(error)) from error
    for tensor in _tensors(content):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UnsafeArchive(f"it has a tensor of shape {tuple(tensor.shape)} without the numbers for it")
    return content


def _reason(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _check_zip(file: IO[bytes]) -> None:
    """Refuses an archive that expands, and a pickle in it that could call something."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise UnsafeArchive("it has compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > file.seek(0, 2):
            raise UnsafeArchive("its entries are larger than the file")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl, expected one")
        with archive.open(pickles[0]) as pickle:
            _check_pickle(pickle)


def _check_pickle(file: IO[bytes]) -> None:
    """Reads a pickle without executing it, and refuses names that are not those of tensors."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _REFUSED or (opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(argument))):
            raise UnsafeArchive("it holds something else than tensors and plain data")


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, which may be deep and may hold themselves."""
    todo, seen = [content], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            todo += item.values()
        elif isinstance(item, list | tuple | set):
            todo += item
