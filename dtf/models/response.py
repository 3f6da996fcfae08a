"""Where, and at which temporal frequency, the DTF blocks of a network filtered a clip.

Letters: B clips, C channels, T frames at a block, H x W pixels there, F = T//2 + 1 temporal frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dtf.models.block import DTFBlock, FoldedDTFBlock


def response_energy(block: DTFBlock, x: torch.Tensor) -> torch.Tensor:
    """The energy of a block's filtered spectrum, per temporal frequency and pixel.

    In evaluation mode a block adds ``d[t] + const[t]`` to its input. ``const`` is what it adds to an empty
    clip (its bias and the running mean of its norm): the same at every pixel of every clip, it says nothing
    about where a clip is filtered and is left out. ``d`` is the filtered spectrum, with input spectrum X,
    predicted filter g, mix M, and the scale of norm and alpha: ``d_o = irfft(alpha_o / sigma_o * sum_c
    M[o, c] g_c X_c)``. With ``D = rfft(d, norm="ortho")``

        energy[f] = w[f] / C * sum_c |D[c, f]|^2,   w = 1 at DC and (T even) at the highest frequency, else 2

    so that the sum over f is ``1/C * sum_c sum_t d[c, t]^2`` (Parseval): the energy that the clip's own
    content made the block add at this pixel. The square root is an amplitude in the units of the features.

    Why not |g| alone: G consecutive entries of the flattened (C, F, re/im) filter share one value, so with
    the usual G = 16 one value serves all F <= 8 frequencies of a channel, and |g| can hardly tell them
    apart. What a frequency gets is decided by filter and spectrum together.

    Args:
        block: a DTF block in evaluation mode.
        x: its input, (B, C, T, H, W), floating.

    Returns:
        (B, F, H, W), >= 0, float32 (float64 for float64). Frequency f is f cycles per clip.

    Raises:
        ValueError: the block is in training mode, where its norm depends on the batch.
    """
    if block.training:
        raise ValueError("the response is defined in evaluation mode: call .eval() first")
    wide = torch.promote_types(x.dtype, torch.float32)
    constant = block.response(x.new_zeros(1, block.dim, block.num_frames, 1, 1)).to(wide)
    spectrum = torch.fft.rfft(block.response(x).to(wide) - constant, dim=2, norm="ortho")
    energy = torch.view_as_real(spectrum).square().sum(dim=-1).mean(dim=1)  # (B, F, H, W)
    # A frequency between the ends stands for itself and its mirror image.
    energy[:, 1 : (block.num_frames + 1) // 2] *= 2
    return energy


def filter_responses(network: nn.Module, video: torch.Tensor) -> dict[str, torch.Tensor]:
    """:func:`response_energy` of every DTF block of a network, for the clips that it is given.

    The network runs once, in evaluation mode and without gradients; its training modes are restored. Nothing
    is added to it for other runs.

    Args:
        network: any module with :class:`DTFBlock` modules in it (ResNet, Swin, your own), compiled or not.
        video: what the network takes: (B, 3, clip_length, H, W), normalised.

    Returns:
        {name of the block in ``network.named_modules()``: (B, F, H, W)}, in the order in which the blocks
        ran; H x W are the block's own pixels. Empty for a network without DTF blocks.

    Raises:
        ValueError: the video does not fit the network.
    """
    energies: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(block, DTFBlock)
            (x,) = inputs
            energies[name] = response_energy(
                block, block.unfold(x) if isinstance(block, FoldedDTFBlock) else x
            )

        return hook

    modes = {module: module.training for module in network.modules()}
    blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, DTFBlock)]
    handles = [block.register_forward_pre_hook(watch(name)) for name, block in blocks]
    try:
        # A compiled graph would not see the hooks.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network.eval()(video)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return energies
