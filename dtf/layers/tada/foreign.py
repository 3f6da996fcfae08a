"""Calibrated convolutions in an existing network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from dtf.layers.tada.convolutions import calibrated
from dtf.layers.tada.family import RoutedConv2d


def to_tada(
    module: nn.Module,
    names: Iterable[str],
    ratio: float = 4,
    kernels: Sequence[int] = (3, 3),
    num_frames: int | None = None,
) -> nn.Module:
    """Calibrates convolutions of an existing network; until it is trained on, it computes the same.

    ``nn.Conv2d`` and ``nn.Conv3d`` that see one frame at a time (1 x k x k) become :class:`RoutedConv2d` with
    their weights, on their device and in their dtype. An optimiser must be made anew: it holds the old ones.

    Args:
        module: The network; it is changed.
        names: Of its convolutions, as in ``module.named_modules()``.
        ratio: Of the routing functions.
        kernels: Of the routing functions.
        num_frames: T where an ``nn.Conv2d`` works on folded frames (B*T, C, H, W), those of a clip following
            each other.

    Returns:
        The same network.

    Raises:
        ValueError: A name is none of its convolutions, or one that cannot be calibrated; nothing was changed.
    """
    made = {}
    modules = dict(module.named_modules())
    for name in names:
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d | nn.Conv3d) or not name:
            found = "nothing of that name" if conv is None else type(conv).__name__
            able = [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Conv3d)]
            raise ValueError(
                f"to_tada: {name!r} must be one of the network's convolutions, got {found}; "
                f"it has {', '.join(able[:10]) or 'none'}{', ...' if len(able) > 10 else ''}"
            )
        if isinstance(conv, nn.Conv2d) and num_frames is None:
            raise ValueError(
                f"to_tada: {name!r} is a convolution of images; "
                "say with num_frames how many frames make a clip"
            )
        try:
            layer = RoutedConv2d(calibrated(conv), ratio, kernels, num_frames)
        except ValueError as error:
            raise ValueError(f"to_tada: {name!r}: {error}") from error
        made[name] = layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    for name, layer in made.items():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer)
    return module
