"""Baselines: networks of PyTorchVideo's zoo, made by its own constructors, as networks of this package.

What this adds to a network of PyTorchVideo: it takes one video tensor (SlowFast's slow frames are picked
here), gives logits (R(2+1)D and X3D end in a softmax as they come) and averages over whatever map its clip
leaves, where the originals pool windows of one fixed clip. At the clip that each was published for it is the
same function. Two more differences: X3D uses torch's SiLU for PyTorchVideo's own Swish, the same function,
which exports and compiles; MViT drops paths in training as its paper does (0.2), while the constructor's
default is none.

Sources: PyTorchVideo 0.1.5 (Fan et al., arXiv 2111.09887). Slow, SlowFast: Feichtenhofer et al., arXiv
1812.03982. X3D: Feichtenhofer, arXiv 2004.04730. CSN: Tran et al., arXiv 1904.02811. R(2+1)D: Tran et al.,
arXiv 1711.11248. MViT: Fan et al., arXiv 2104.11227.

PyTorchVideo is imported by the first of these networks that is built, and not before.

One piece, though long: a builder and its options for each of six networks, all around one wrapper.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dtf.layers.options import (
    Options,
    one_of,
    option,
    positive_integer,
    positive_integers,
    positive_number,
    share,
    side_or_sides,
)
from dtf.layers.temporal import Temporal
from dtf.models.network import VideoNetwork, recomputed
from dtf.models.registry import Backbone, register_model
from dtf.models.stems import Tubelets
from dtf.models.weights.images import check_state, read_state_dict

log = logging.getLogger(__name__)

# Registered name -> module and key of PyTorchVideo's table of published weights.
_PUBLISHED = {
    "ptv_slow_r50": ("resnet", "slow_r50"),
    "ptv_slowfast_r50": ("slowfast", "slowfast_r50"),
    "ptv_x3d_s": ("x3d", "x3d_s"),
    "ptv_x3d_m": ("x3d", "x3d_m"),
    "ptv_csn_r101": ("csn", "csn_r101"),
    "ptv_r2plus1d_r50": ("r2plus1d", "r2plus1d_r50"),
    "ptv_mvit_b": ("vision_transformers", "mvit_base_16x4"),
}
# MViT: frames and pixels per position of its tables.
_PATCH = (2, 4)


class PyTorchVideoNetwork(VideoNetwork):
    """A network of PyTorchVideo that takes whole clips.

    Args:
        backbone: Takes (B, 3, T, H, W), or a list of such clips with ``slow_frames``; gives (B, num_classes).
        clip_length: Frames per clip.
        slow_frames: Frames of the clip that the first of two pathways sees; the second sees all.
        image_size: (H, W) where the network accepts only one size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        clip_length: int,
        slow_frames: Sequence[int] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(backbone, clip_length, Tubelets(1, 1), image_size)
        self.slow_frames = slow_frames
        self.warned = False
        for module in backbone.modules():
            if isinstance(module, nn.Conv3d):
                # Some are NumPy's integers, which torch.compile takes for data.
                module.stride = tuple(int(s) for s in module.stride)

    def forward(self, video: Tensor) -> Tensor:
        """(B, 3, clip_length, H, W), normalised, floating -> logits (B, num_classes).

        Raises:
            ValueError: As :meth:`VideoNetwork.forward`.
        """
        self.check(video)
        if video.device.type != "cpu":
            return self._run(video)
        # Measured on CPU: a step of training takes 0.5 (CSN, R(2+1)D) to 0.9 (Slow) of the time.
        video = video.contiguous(memory_format=torch.channels_last_3d)
        bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if not (bfloat16 and torch.is_grad_enabled()):
            return self._run(video)
        # torch 2.15 with oneDNN 3.13: the weight gradient of a bfloat16 convolution whose kernel is longer
        # than its T > 1 frames is whatever was in memory. Clips that a CPU can train on come to that.
        if not self.warned:
            log.warning("%s trains in float32: on a CPU, bfloat16 gradients over time are wrong", self.name)
            self.warned = True
        with torch.autocast("cpu", enabled=False):
            return self._run(video.float())

    def _run(self, video: Tensor) -> Tensor:
        if self.slow_frames is None:
            return self.backbone(video)
        slow = torch.stack([video[:, :, index] for index in self.slow_frames], dim=2)
        # A new list for every call: the network writes its own features into it.
        return self.backbone([slow, video])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As :meth:`VideoNetwork.set_grad_checkpointing`, for every residual and transformer block."""
        self.grad_checkpointing = enable
        for block in self.modules():
            if type(block).__name__ in ("ResBlock", "MultiScaleBlock"):
                # In the block's own place: what calls it is PyTorchVideo's, and differs between the networks.
                block.__dict__.pop("forward", None)
                if enable:
                    block.forward = partial(_run_block, block)

    @property
    def classifier(self) -> str:
        """Name of the last linear layer within the backbone."""
        blocks = self.backbone.blocks
        return "head.proj" if hasattr(self.backbone, "head") else f"blocks.{len(blocks) - 1}.proj"

    @property
    def last_stage(self) -> nn.Module:
        """The stage ahead of the head; the two pathways of SlowFast meet in one block more.

        Raises:
            ValueError: The network (MViT) is no list of stages.
        """
        blocks = self.backbone.blocks
        if not hasattr(self.backbone, "head") and len(blocks) > 2:
            return blocks[-3] if type(blocks[-2]).__name__ == "PoolConcatPathway" else blocks[-2]
        return super().last_stage

    def unfold(self, maps: Tensor) -> Tensor:
        """Its stages work on clips."""
        return maps


def load_published(
    model: VideoNetwork, pretrained: bool | str | os.PathLike[str], published: str | None
) -> None:
    """Loads Kinetics-400 weights as PyTorchVideo publishes them; nothing of the file is executed.

    The classifier stays fresh where the file's has another number of classes; all else has to fit.

    Args:
        model: The network.
        pretrained: ``True`` downloads PyTorchVideo's weights into ``torch.hub``'s folder, once; a path is a
            local
            copy: a state dict, alone or under ``model_state``.
        published: Unused: which weights there are depends on the clip.

    Raises:
        ValueError: The file is no such file, or its weights do not fit (each misfit is named).
        OSError: The download failed, or the file cannot be read.
    """
    source = _download(model.name, model.clip_length) if pretrained is True else Path(str(pretrained))
    state = read_state_dict(source)
    wanted = model.backbone.state_dict()
    classifier = [f"{model.classifier}.{part}" for part in ("weight", "bias")]
    classes = state.get(classifier[1])
    fresh = classes is not None and classes.shape != wanted[classifier[1]].shape
    if fresh:
        for key in classifier:
            state[key] = wanted[key]
    check_state(model.name, str(source), state, wanted)
    model.backbone.load_state_dict(state)
    log.info("%s: %d tensors from %s", model.name, len(state), source)
    if classes is not None and fresh:
        log.info(
            "%s: the weights are those of %d classes; the classifier of %d starts fresh",
            model.name,
            len(classes),
            len(wanted[classifier[1]]),
        )


def _run_block(block: nn.Module, *inputs: Any) -> Any:
    run = partial(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return recomputed(block, run, *inputs)
    return run(*inputs)


def _download(name: str, clip_length: int) -> Path:
    """Returns PyTorchVideo's published weights of a network, downloaded unless they are there."""
    if name not in _PUBLISHED:
        raise ValueError(
            f"{name}: there are no published weights for it; use pretrained=False or a local file"
        )
    module, key = _PUBLISHED[name]
    if name == "ptv_mvit_b" and clip_length == 32:
        key = "mvit_base_32x3"
    url = _import(f"pytorchvideo.models.hub.{module}").checkpoint_paths[key]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / os.path.basename(urlsplit(url).path)
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("%s: downloading %s", name, url)
        # Written under another name first: a broken download leaves no file that looks whole.
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise OSError(
            f"{name}: could not get {url}: {error}\nTrain from scratch with pretrained=False, or give a "
            "local copy: pretrained=PATH"
        ) from error
    return path


def _import(name: str) -> Any:
    """Imports a module of PyTorchVideo."""
    try:
        with warnings.catch_warnings():
            # It scripts a few functions on import; newer versions of torch call that deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"networks called ptv_* come from PyTorchVideo: pip install pytorchvideo ({error})"
        ) from error


@dataclass(frozen=True)
class ResNetOptions(Options):
    """Slow, CSN and R(2+1)D.

    Attributes:
        depth: Layers: 50, 101 or 152.
        width: Channels of the stem; every stage scales with it.
        dropout: Probability before the classifier.
    """

    depth: int = option(50, one_of(50, 101, 152))
    width: int = option(64, positive_integer)
    dropout: float = option(0.5, share)


@dataclass(frozen=True)
class SlowFastOptions(Options):
    """SlowFast.

    Attributes:
        depth: Layers: 18 (one block per stage, as PyTorchVideo counts), 50, 101 or 152.
        width: Channels of the slow pathway's stem, a multiple of ``beta_inverse``; every stage scales with
            it.
        alpha: Frames of the fast pathway per frame of the slow one.
        beta_inverse: Channels of the slow pathway per channel of the fast one (1 / beta).
        dropout: Probability before the classifier.
    """

    depth: int = option(50, one_of(18, 50, 101, 152))
    width: int = option(64, positive_integer)
    alpha: int = option(4, positive_integer)
    beta_inverse: int = option(8, positive_integer)
    dropout: float = option(0.5, share)


@dataclass(frozen=True)
class X3DOptions(Options):
    """X3D.

    Attributes:
        width_factor: Channels, as a multiple of X3D's 12, 24, 48, 96 (rounded to multiples of 8).
        depth_factor: Blocks per stage, as a multiple of 1, 2, 5, 3 (rounded up).
        dropout: Probability before the classifier.
    """

    width_factor: float = option(2.0, positive_number)
    depth_factor: float = option(2.2, positive_number)
    dropout: float = option(0.5, share)


@dataclass(frozen=True)
class MViTOptions(Options):
    """MViTv1.

    Attributes:
        image_size: Side, or (height, width), of the frames in pixels; multiples of 4.
        embed_dim: Channels of the first stage, a multiple of ``num_heads``; doubled by each later stage.
        depths: Blocks per stage; each stage halves height and width of the one before.
        num_heads: Attention heads of the first stage; doubled by each later stage.
        dropout: Probability before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
    """

    image_size: int | tuple[int, int] = option(224, side_or_sides)
    embed_dim: int = option(96, positive_integer)
    depths: tuple[int, ...] = option((1, 2, 11, 2), positive_integers((1, 2, 11, 2)))
    num_heads: int = option(1, positive_integer)
    dropout: float = option(0.5, share)
    drop_path_rate: float = option(0.2, share)


# Pooling over the whole map: what a fixed window does at the clip that it was made for.
_POOL: dict[str, Any] = {
    "head_pool": nn.AdaptiveAvgPool3d,
    "head_output_size": (1, 1, 1),
    "head_activation": None,
}


def _resnet(
    module: str, create: str, options: ResNetOptions, num_classes: int, clip_length: int, **settings: Any
) -> PyTorchVideoNetwork:
    """A ResNet of one pathway by PyTorchVideo's constructor; ``settings`` are those of its family."""
    backbone = getattr(_import(f"pytorchvideo.models.{module}"), create)(
        model_depth=options.depth,
        model_num_class=num_classes,
        dropout_rate=options.dropout,
        stem_dim_out=options.width,
        **_POOL,
        **settings,
    )
    return PyTorchVideoNetwork(backbone, clip_length)


def slow(
    options: ResNetOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds SlowFast's slow pathway alone: a ResNet with temporal kernels in its last two stages.

    Any clip length (published: 8).
    """
    kernel = {"stem_conv_kernel_size": (1, 7, 7)}
    return _resnet("resnet", "create_resnet", options, num_classes, clip_length, **kernel)


def slowfast(
    options: SlowFastOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds SlowFast: a slow pathway of few frames and a fast one of few channels.

    The clip length is that of the fast pathway, a multiple of ``alpha`` (published: 32). The slow pathway
    sees clip_length / alpha of its frames, spread evenly from the first to the last.
    """
    alpha, width, beta_inverse = options.alpha, options.width, options.beta_inverse
    if clip_length % alpha:
        raise ValueError(
            "clip_length is that of the fast pathway and must be a multiple of "
            f"alpha={alpha}, got {clip_length}"
        )
    if width % beta_inverse:
        raise ValueError(f"width must be a multiple of beta_inverse={beta_inverse}, got {width}")
    backbone = _import("pytorchvideo.models.slowfast").create_slowfast(
        slowfast_channel_reduction_ratio=(beta_inverse,),
        # As published: 7 frames for the 50-layer network, 5 for the deeper ones.
        slowfast_fusion_conv_kernel_size=(7 if options.depth <= 50 else 5, 1, 1),
        slowfast_fusion_conv_stride=(alpha, 1, 1),
        model_depth=options.depth,
        model_num_class=num_classes,
        dropout_rate=options.dropout,
        stem_dim_outs=(width, width // beta_inverse),
        **{**_POOL, "head_output_size": ((1, 1, 1), (1, 1, 1))},
    )
    # The frames that the published weights were trained on. On the CPU, also where the network is built on
    # another device: a rounding there must not choose another frame.
    frames = torch.linspace(0, clip_length - 1, clip_length // alpha, device="cpu").long().tolist()
    return PyTorchVideoNetwork(backbone, clip_length, slow_frames=frames)


def x3d(
    options: X3DOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds X3D: channelwise convolutions with squeeze-excitation. Any clip length.

    X3D-S and X3D-M are one network; they differ in the clip that they were published for (13 frames of 160
    pixels, 16 of 224), and so in their weights. ``ptv_x3d_tiny`` is ours: X3D in pocket size, for small
    frames and for CPUs; there are no weights of it.
    """
    backbone = _import("pytorchvideo.models.x3d").create_x3d(
        model_num_class=num_classes,
        dropout_rate=options.dropout,
        width_factor=options.width_factor,
        depth_factor=options.depth_factor,
        inner_act=nn.SiLU,
        head_activation=None,
    )
    # The constructor has no word for it: its clip and crop size only make up a fixed window.
    backbone.blocks[-1].pool.pool = nn.AdaptiveAvgPool3d(1)
    return PyTorchVideoNetwork(backbone, clip_length)


def csn(
    options: ResNetOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds a channel-separated network (ir-CSN): a ResNet whose 3x3x3 convolutions are channelwise.

    Any clip length (published: 32).
    """
    return _resnet("csn", "create_csn", options, num_classes, clip_length, stem_pool=nn.MaxPool3d)


def r2plus1d(
    options: ResNetOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds R(2+1)D: a ResNet whose 3x3x3 convolutions are split into space, then time.

    Any clip length (published: 16).
    """
    return _resnet("r2plus1d", "create_r2plus1d", options, num_classes, clip_length)


class _MetaWeights(TorchFunctionMode):
    """Makes weights on the meta device, whatever the device of other new tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros):
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {}))


def mvit(
    options: MViTOptions, num_classes: int, clip_length: int, temporal: Temporal | None
) -> PyTorchVideoNetwork:
    """Builds a multiscale vision transformer (MViTv1).

    The clip length is even (published: 16 and 32). Weights of one length do not fit another.
    """
    size, embed_dim, depths, num_heads = (
        options.image_size,
        options.embed_dim,
        options.depths,
        options.num_heads,
    )
    height, width = (size, size) if isinstance(size, int) else size
    frames, pixels = _PATCH
    if clip_length % frames:
        raise ValueError(f"clip_length must be even: a patch holds {frames} frames; got {clip_length}")
    if height % pixels or width % pixels:
        raise ValueError(f"image_size must be multiples of {pixels} pixels, got {size}")
    if embed_dim % num_heads or embed_dim < 8:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads={num_heads} and at least 8, got {embed_dim}"
        )
    starts = [sum(depths[:stage]) for stage in range(1, len(depths))]
    module = _import("pytorchvideo.models.vision_transformers")
    device = torch.get_default_device()
    # The constructor computes its sizes and rates with tensors: not on the meta device, only weights are.
    with torch.device("cpu"), _MetaWeights() if device.type == "meta" else nullcontext():
        backbone = module.create_multiscale_vision_transformers(
            spatial_size=(height, width),
            temporal_size=clip_length,
            depth=sum(depths),
            patch_embed_dim=embed_dim,
            num_heads=num_heads,
            embed_dim_mul=[[start, 2.0] for start in starts],
            atten_head_mul=[[start, 2.0] for start in starts],
            pool_q_stride_size=[[start, 1, 2, 2] for start in starts],
            pool_kv_stride_adaptive=[1, 8, 8],
            pool_kvq_kernel=[3, 3, 3],
            droppath_rate_block=options.drop_path_rate,
            head_dropout_rate=options.dropout,
            head_activation=None,
            head_num_classes=num_classes,
        )
    return PyTorchVideoNetwork(backbone.to(device), clip_length, image_size=(height, width))


X3D = Backbone("x3d", X3DOptions, x3d, load_published)

register_model("ptv_slow_r50", Backbone("slow", ResNetOptions, slow, load_published))
register_model("ptv_slowfast_r50", Backbone("slowfast", SlowFastOptions, slowfast, load_published))
register_model("ptv_x3d_tiny", X3D, pocket=True, width_factor=1.0, depth_factor=0.5, dropout=0.0)
register_model("ptv_x3d_s", X3D)
register_model("ptv_x3d_m", X3D)
register_model("ptv_csn_r101", Backbone("csn", ResNetOptions, csn, load_published), depth=101, dropout=0.0)
register_model("ptv_r2plus1d_r50", Backbone("r2plus1d", ResNetOptions, r2plus1d, load_published))
register_model("ptv_mvit_b", Backbone("mvit", MViTOptions, mvit, load_published))
