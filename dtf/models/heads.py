"""From the features of folded frames to logits. Classifiers belong to their backbones, whose names they have.

Letters: B clips, T steps, C channels, h x w places, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def mean_features(
    maps: Tensor, num_steps: int, classifier: nn.Module, dropout: float, training: bool
) -> Tensor:
    """(B*T, C, h, w) -> (B, K): mean over steps and places, dropout, classifier."""
    features = maps.mean(dim=(2, 3)).unflatten(0, (-1, num_steps)).mean(dim=1)
    return classifier(F.dropout(features, dropout, training))


def mean_logits(logits: Tensor, num_steps: int) -> Tensor:
    """(B*T, K), each step classified by itself -> (B, K): their mean."""
    return logits.unflatten(0, (-1, num_steps)).mean(dim=1)
