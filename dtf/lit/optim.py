"""Optimiser recipes: SGD and AdamW, linear warm-up and a schedule per step, weight decay where it belongs.

No decay on vectors (norms, biases, scales of a layer) and position tables, as Video-Swin, MViT and
TAdaConv do; the SIFA / DTF pipeline decays everything (`decay_all`).

Learning rates by name (`lr_scale`): Video-Swin's backbone at a tenth, TAdaConv's new parameters tenfold. By
depth (`layer_decay`): BEiT (arXiv 2106.08254), over timm's own grouping of a backbone into layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import nn

from dtf.text import nearest
from dtf.values import is_number

Recipe = Literal["sgd", "adamw"]

POSITION_TABLES = (
    *("relative_position_bias_table", "pos_embed", "position_embedding", "absolute_pos_embed"),
    *("pos_embed_spatial", "pos_embed_temporal"),
)
"""Names (last component) of parameters that hold positions: never decayed, although they are matrices."""

SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": lambda step, num_steps, warmup_steps: _cosine(
        (step - warmup_steps) / max(1, num_steps - warmup_steps)
    ),
    "whole_cosine": lambda step, num_steps, warmup_steps: _cosine(step / num_steps),
}
"""(step from the warm-up on, steps until the end, steps of warm-up) -> 1 down to 0, and 0 beyond the end.

`cosine` begins where the warm-up ends (TAdaConv's `cosine_v2`), `whole_cosine` at step 0, so that the warm-up
ends below the peak (its `cosine`).
"""

GROUP_TITLES = {"decay": "kernels, matrices", "no_decay": "norms, biases, scales, position tables"}


@dataclass(frozen=True)
class OptimConfig:
    """One recipe. `conf/optim/` holds them.

    Args:
        name: "sgd" or "adamw".
        lr: peak learning rate, for the batch size in use: nothing scales it behind the user's back.
        weight_decay: for the parameters that are decayed.
        momentum, nesterov: SGD only.
        betas, eps: AdamW only.
        warmup_epochs: linear warm-up, in epochs (fractions allowed).
        warmup_start: first learning rate as a share of `lr`, in (0, 1].
        schedule: a name in `SCHEDULES`, what follows the warm-up.
        min_lr: the schedule's end as a share of `lr`, in [0, 1].
        cooldown_epochs: the last epochs of the run, after the schedule's end, at `min_lr`; with the
            warm-up fewer than it has.
        decay_all: decay norms, biases and position tables too.
        lr_scale: pattern -> factor on `lr` for the parameters that it names. A pattern is a module's name
            ("backbone.head") or has wildcards ("*.bias"). Of several that fit a name, the last one counts.
        layer_decay: factor on `lr` per layer from the classifier down, in (0, 1]: the classifier has `lr`,
            the last block `lr` times this, the stem the least. Multiplies with `lr_scale`. None: no such
            decay.

    Raises:
        ValueError: values out of range; all faults at once.
    """

    name: Recipe
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_epochs: float = 0.0
    warmup_start: float = 0.01
    schedule: str = "cosine"
    min_lr: float = 0.0
    cooldown_epochs: float = 0.0
    decay_all: bool = False
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.name not in get_args(Recipe):
            faults.append(f"name must be {' or '.join(get_args(Recipe))}, got {self.name!r}")
        if self.schedule not in tuple(SCHEDULES):  # anything, a list too
            known = ", ".join(SCHEDULES)
            faults.append(f"schedule must be one of {known}, got {self.schedule!r}")
        limits = {
            "lr": (0.0, math.inf),
            "weight_decay": (0.0, math.inf),
            "momentum": (0.0, 1.0),
            "eps": (0.0, math.inf),
            "warmup_epochs": (0.0, math.inf),
            "cooldown_epochs": (0.0, math.inf),
            "warmup_start": (0.0, 1.0),
            "min_lr": (0.0, 1.0),
        }
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not is_number(value) or not low <= value <= high:
                faults.append(f"{key} must be a number in {low:g}..{high:g}, got {value!r}")
        if self.layer_decay is not None and not (is_number(self.layer_decay) and 0 < self.layer_decay <= 1):
            faults.append(
                f"layer_decay must be null or a number above 0 and up to 1, got {self.layer_decay!r}"
            )
        if not isinstance(self.lr_scale, Mapping):
            faults.append(f"lr_scale must be a mapping {{name: factor}}, got {self.lr_scale!r}")
        else:
            for pattern, factor in self.lr_scale.items():
                if not is_number(factor) or not 0 < factor < math.inf:
                    faults.append(f"lr_scale.{pattern} must be a number above 0, got {factor!r}")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            faults.append("nesterov needs momentum > 0")
        if faults:
            raise ValueError("optim: " + "; ".join(faults))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> OptimConfig:
        """Plain data (a config node) to a recipe; an unknown key is a ValueError with the nearest name."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"there is no setting optim.{key}{nearest(str(key), known)}")
        missing = [key for key in ("name", "lr") if key not in values]
        if missing:
            raise ValueError(f"optim needs {' and '.join(missing)}")
        settings: dict[str, Any] = {str(k): tuple(v) if k == "betas" else v for k, v in values.items()}
        for key in ("lr_scale", "cooldown_epochs", "schedule"):  # null in the config: none
            if settings.get(key) is None:
                settings.pop(key, None)
        return cls(**settings)


class ParameterGroup(TypedDict):
    """A parameter group as torch's optimisers take it, with the names of its members.

    `name` ends in "decay" or "no_decay", after the layer and the pattern that decided the learning rate:
    "layer_3/*.bias/no_decay". `lr` is the recipe's times `lr_scale`.
    """

    name: str
    params: list[nn.Parameter]
    param_names: list[str]
    weight_decay: float
    lr: float
    lr_scale: float


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to a parameter: matrices and kernels, but no position table."""
    last = name.rsplit(".", 1)[-1]
    return parameter.numel() > max(parameter.shape, default=1) and last not in POSITION_TABLES


def parameter_groups(network: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """Trainable parameters in groups of one learning rate and one weight decay, from stem to classifier.

    Without `lr_scale` and `layer_decay` they are "decay" and "no_decay". A group without members is left
    out.

    Raises:
        ValueError: a pattern of `lr_scale` names nothing; `layer_decay` for a network that does not say which
            layer a parameter belongs to.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    patterns = _patterns(names, config.lr_scale)
    layers = _layers(network) if config.layer_decay is not None else {}
    last_layer = max(layers.values(), default=0)
    groups: dict[tuple[int, str, str], ParameterGroup] = {}
    for name in names:
        parameter = network.get_parameter(name)
        decayed = config.decay_all or is_decayed(name, parameter)
        kind, pattern, layer = "decay" if decayed else "no_decay", patterns.get(name, ""), layers.get(name, 0)
        scale = config.lr_scale.get(pattern, 1.0) * (config.layer_decay or 1.0) ** (last_layer - layer)
        title = [f"layer_{layer}" if layers else "", pattern, kind]
        empty = ParameterGroup(
            name="/".join(filter(None, title)),
            params=[],
            param_names=[],
            weight_decay=float(config.weight_decay if decayed else 0.0),
            lr=float(config.lr * scale),
            lr_scale=float(scale),
        )
        group = groups.setdefault((layer, pattern, kind), empty)
        group["params"].append(parameter)
        group["param_names"].append(name)
    # Layers in order; within one, as the network declares its parameters.
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _patterns(names: list[str], lr_scale: Mapping[str, float]) -> dict[str, str]:
    """Parameter name -> the last pattern that fits it."""
    found: dict[str, str] = {}
    for pattern in lr_scale:
        fits = [n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)]
        if not fits:
            modules = {n[:i] for n in names for i, letter in enumerate(n) if letter == "."}
            raise ValueError(
                f"optim.lr_scale.{pattern} fits no parameter{nearest(pattern, sorted(modules))} (a pattern "
                "is a module's name such as backbone, or has wildcards: *.bias)"
            )
        found |= dict.fromkeys(fits, pattern)
    return found


def _layers(network: nn.Module) -> dict[str, int]:
    """Parameter name -> layer, 0 for the stem; the classifier is the last; a filter is in its block's."""
    backbone: Any = getattr(network, "backbone", None)
    if not hasattr(backbone, "group_matcher"):
        name = getattr(network, "name", "") or type(network).__name__
        raise ValueError(
            f"optim.layer_decay: {name} does not say which layer a parameter belongs to (timm's "
            "group_matcher); use optim.lr_scale, or null"
        )
    from timm.models import group_parameters

    layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    return {f"backbone.{name}": layer for name, layer in layers.items()}


def build_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the network's parameter groups."""
    # Names stay out of the optimiser: its state must hold nothing but plain data that a resume can match.
    groups = [{k: v for k, v in g.items() if k != "param_names"} for g in parameter_groups(network, config)]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def learning_rate(
    schedule: str, num_steps: int, warmup_steps: int, warmup_start: float = 0.01, min_lr: float = 0.0
) -> Callable[[int], float]:
    """The learning rate of step 0..num_steps-1 as a share of its peak.

    Args:
        schedule: a name in `SCHEDULES`.
        num_steps: optimiser steps until the schedule's end, at least 1; later ones stay there.
        warmup_steps: steps of linear warm-up, from `warmup_start` to what the schedule gives at its end.
        warmup_start: share at step 0.
        min_lr: share after the last step.
    """
    shape = SCHEDULES[schedule]

    def after_warmup(step: int) -> float:
        return min_lr + (1 - min_lr) * shape(step, num_steps, warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (after_warmup(warmup_steps) - warmup_start) * step / warmup_steps
        return after_warmup(step)

    return factor


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
