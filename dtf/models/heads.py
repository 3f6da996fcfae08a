"""From the features of folded frames to logits. Classifiers belong to their backbones, whose names they have.

Letters: B clips, T steps, C channels, h x w places, K classes, N heads.
"""

from __future__ import annotations

import math

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


def per_head(outputs: Tensor) -> tuple[Tensor, ...]:
    """What a network gives in training, (B, K) or of several heads (B, N, K) -> (B, K) of each."""
    return (outputs,) if outputs.dim() == 2 else outputs.unbind(1)


def joined_heads(outputs: Tensor) -> Tensor:
    """(B, N, K) -> (B, K): logarithm of the heads' mean softmax scores, so that its softmax is that mean.

    (B, K), of one head, stays what it is.
    """
    if outputs.dim() == 2:
        return outputs
    scores = outputs.float() if outputs.dtype.itemsize == 2 else outputs
    return scores.log_softmax(dim=2).logsumexp(dim=1) - math.log(outputs.shape[1])
