"""What an ONNX file may hold to be opened: one graph with all of its numbers in the file itself.

A tensor of a graph may name another file as its data (any path, in some versions of onnxruntime even an
address in memory), and a small one may stand for a large one. Such files are refused before onnxruntime sees
them, in whatever version it is installed. The file is walked as a protobuf, so that reading it takes neither
the package `onnx` nor memory: only tags and lengths are looked at, and messages that hold no tensors are
skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_MOST_BYTES = 2**31  # of any protobuf
_MOST_FIELDS = 2_000_000
_DEEPEST = 100  # as protobuf's own readers

# Message -> number of a field -> message in that field: all that leads to tensors (onnx.proto).
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
}
_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # of a TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_onnx(path: Path) -> None:
    """Refuses a graph that asks for anything beyond its own file.

    Raises:
        ValueError: The file is no protobuf of an ONNX graph, or has external data, sparse tensors, tensors
            larger than itself, or millions of parts.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if not 0 < size < _MOST_BYTES:
        raise ValueError(f"{path} is no ONNX graph: it has {size} bytes; they have at least 1, below 2 GiB")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            _Walk(content).message("ModelProto", 0, size, 0)
        except ValueError as error:
            raise ValueError(f"{path} is not opened as an ONNX graph: {error}") from None


class _Walk:
    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.left = _MOST_FIELDS

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        parts = MESSAGES[kind]
        for number, wire, first, last in self.fields(start, end):
            inner = parts.get(number) if wire == _BYTES else None
            if inner == "SparseTensorProto":
                raise ValueError("it has sparse tensors, which may be larger than the file")
            if inner == "TensorProto":
                self.tensor(first, last)
            elif inner is not None:
                self.message(inner, first, last, depth + 1)

    def tensor(self, start: int, end: int) -> None:
        elements = 1
        for number, wire, first, last in self.fields(start, end):
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (wire != _VARINT or first)):
                raise ValueError("it has external data: tensors whose numbers are not in this file")
            if number == _DIMS and wire == _VARINT:
                elements *= first
            elif number == _DIMS and wire == _BYTES:
                while first < last:
                    dim, first = self.varint(first, last)
                    elements *= dim
            if elements.bit_length() > 64:
                break
        # The smallest elements have two bits.
        if elements > 8 * (end - start):
            raise ValueError(f"it has a tensor of {elements:.3g} numbers in {end - start} bytes")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, value or start, end) of each field of a message."""
        while start < end:
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS} parts")
            tag, start = self.varint(start, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, start = self.varint(start, end)
                yield number, wire, value, start
                continue
            if wire == _BYTES:
                length, start = self.varint(start, end)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError("it is no protobuf, or a damaged one")
            if number == 0 or length > end - start:
                raise ValueError("it is no protobuf, or a damaged one")
            yield number, wire, start, start + length
            start += length

    def varint(self, start: int, end: int) -> tuple[int, int]:
        """A number, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if start >= end:
                break
            byte = self.content[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), start
        raise ValueError("it is no protobuf, or a damaged one")
