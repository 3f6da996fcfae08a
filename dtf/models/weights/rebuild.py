"""Networks that a file asks for, built only once it is known that the file holds their weights.

A file may ask for anything: a million layers, a classifier of a terabyte. Therefore a network is first laid
out on the meta device, where tensors take no memory, for no longer than the tensors of the file last; its
shapes have to be those of the file; and only then is it built.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dtf.models.network import VideoNetwork
from dtf.models.registry import create_model

MOST_TENSORS = 20_000
"""In one file; the deepest network here has 857."""
_MOST_NODES, _DEEPEST, _LONGEST_TEXT = 1_000_000, 32, 32 * 2**20
# Where a file's tensors are few and small, its settings may still be as large as these.
_ALWAYS_ALLOWED, _LONGEST_LIST = 2048, 64
_BLOCKS = ("layers", "depths")  # arguments that count blocks, each of at least one tensor
# Constants that are made anew and stand in no file: attention masks, Fourier matrices.
_CONSTANT_BYTES = 256 * 2**20
# What the builders and the libraries below them raise for sizes that cannot be.
_UNBUILDABLE = (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError, LookupError)


def plain_data(value: Any) -> Any:
    """Returns ``value``, read from a file, if it is no more than a document of settings.

    Raises:
        ValueError: It holds anything but mappings from texts, lists, numbers, texts and ``None``, or more
            than a million of them, or they are nested more than 32 deep.
    """
    left = _MOST_NODES

    def visit(item: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            # Counted with repetition: what refers to itself in many places would be walked without end.
            raise ValueError(f"more than {_MOST_NODES} values")
        if isinstance(item, str | bool | int | float) or item is None:
            return
        if depth == _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
        if isinstance(item, Mapping):
            for key, part in item.items():
                if not isinstance(key, str):
                    raise ValueError(f"a key that is no text: {str(key)[:80]!r}")
                visit(part, depth + 1)
        elif isinstance(item, list | tuple):
            for part in item:
                visit(part, depth + 1)
        else:
            raise ValueError(f"a {type(item).__name__}, which is no plain value")

    visit(value, 0)
    return value


def read_json(text: str | bytes) -> Any:
    """Returns what a JSON text from a file says.

    Raises:
        ValueError: It is no JSON, longer than 32 MiB, or not as :func:`plain_data` wants it.
    """
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"a JSON text of {len(text)} characters; at most {_LONGEST_TEXT} are read")
    try:
        return plain_data(json.loads(text))
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} deep") from None


def rebuild(source: object, name: Any, arguments: Any, shapes: Mapping[str, Sequence[int]]) -> VideoNetwork:
    """Builds the network that a file names, if the file's tensors are its weights.

    Args:
        source: The file, for messages.
        name: Registered name, as the file has it.
        arguments: Arguments of ``create_model``, as the file has them.
        shapes: Shape of each tensor in the file, by its name in the network's state dict.

    Returns:
        The network on the CPU, freshly initialised.

    Raises:
        ValueError: The file asks for another network than it holds.
    """
    try:
        misfits = lay_out(name, arguments, shapes)
        if not misfits:
            return create_model(name, **arguments)
    except _UNBUILDABLE as error:
        # Both may repeat a text of the file, of any length.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise ValueError(f"{source}: cannot rebuild {repr(name)[:80]} from it: {reason}") from error
    raise ValueError(
        f"{source}: cannot rebuild {name!r} from it: {len(misfits)} tensors are missing, left over or of "
        f"another shape, first {misfits[0]}; it was written by another version, or its header was changed"
    )


def lay_out(name: Any, arguments: Any, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Names of tensors that a network and a file do not have alike, sorted; takes no memory to speak of.

    Args:
        name: Registered name.
        arguments: Arguments of ``create_model``.
        shapes: Shape of each tensor in the file.

    Raises:
        ValueError: The arguments are no plain data or ask for far more than the tensors of the file.
    """
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError("its name must be a text and its arguments a mapping")
    if arguments.get("pretrained", False) is not False:
        raise ValueError("it must not ask for pretrained weights")
    if len(shapes) > MOST_TENSORS:
        raise ValueError(f"it holds {len(shapes)} tensors; at most {MOST_TENSORS} are read")
    largest = max((max(shape) for shape in shapes.values() if shape and 0 not in shape), default=0)
    _check_sizes(arguments, max(largest, len(shapes), _ALWAYS_ALLOWED))
    for key in _BLOCKS:
        blocks = arguments.get(key, ())
        if isinstance(blocks, list | tuple) and all(isinstance(count, int) for count in blocks):
            _check_sizes({f"{key} in all": sum(blocks)}, max(len(shapes), _ALWAYS_ALLOWED))
    # A block may be made twice, to be replaced.
    with torch.device("meta"), _at_most(4 * len(shapes) + 64, "parameters, far more than it holds"):
        model = create_model(name, **arguments)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(shape) for key, shape in shapes.items()}
    constants = sum(value.nbytes for key, value in model.named_buffers() if key not in expected)
    if constants > _CONSTANT_BYTES + sum(value.nbytes for value in model.state_dict().values()):
        raise ValueError(f"its arguments ask for {constants} bytes of constants, far more than its weights")
    return sorted(key for key in {*expected, *given} if expected.get(key) != given.get(key))


def _check_sizes(arguments: Mapping[str, Any], most: int) -> None:
    for key, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) > _LONGEST_LIST:
            raise ValueError(f"{key} has {len(values)} entries, at most {_LONGEST_LIST} are read")
        for number in values:
            if isinstance(number, int | float) and not number <= most:
                raise ValueError(f"it asks for {key}={number}, far more than its tensors have ({most})")


@contextmanager
def _at_most(count: int, what: str) -> Iterator[None]:
    """Ends the building of a network in this thread when it has made so many parameters."""
    thread, left = threading.get_ident(), count

    def registered(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= 1
            if left < 0:
                raise ValueError(f"its arguments ask for more than {count} {what}")

    hook = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        hook.remove()
