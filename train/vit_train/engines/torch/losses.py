"""The losses of a batch in PyTorch. engines.jax.losses is the same in JAX."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_train.config import TrainConfig
from vit_train.data.batches import Batch

HeadValues = tuple[Tensor, Tensor]
"""The inputs of a head [B, features], and its logits [B, classes]."""


def total_loss(config: TrainConfig, outputs: Tensor, batch: Batch) -> Tensor:
    """The loss summed over the examples by their weights, in float32 at least.

    outputs: logits [B, classes], or of a masked autoencoder the loss of each example.
    """
    outputs = precise(outputs)
    losses_B = outputs if config.masked is not None else own_losses(config, outputs, batch)
    return (losses_B * batch.weights_B.to(losses_B)).sum()


def distillation_loss(config: TrainConfig, student: Sequence[HeadValues], teacher: HeadValues, batch: Batch) -> Tensor:
    """`total_loss` of a run that also learns from a teacher (vit_train.config.Distillation). student: of each head."""
    distillation, (own, learning) = config.distillation, (student[0], student[-1])
    losses_B = own_losses(config, precise(own[1]), batch)
    features_BD, logits_BC = map(precise, learning)
    their_features_BD, their_logits_BC = (precise(x).detach() for x in teacher)
    if distillation.kind == "hard":
        taught_B = F.cross_entropy(logits_BC, their_logits_BC.argmax(dim=-1), reduction="none")
    elif distillation.kind == "logits":
        T = distillation.temperature
        ours_BC, theirs_BC = F.log_softmax(logits_BC / T, dim=-1), F.log_softmax(their_logits_BC / T, dim=-1)
        taught_B = T**2 * F.kl_div(ours_BC, theirs_BC, reduction="none", log_target=True).sum(dim=-1)
    else:
        taught_B = 1 - F.cosine_similarity(features_BD, their_features_BD)
    losses_B = (1 - distillation.weight) * losses_B + distillation.weight * taught_B
    return (losses_B * batch.weights_B.to(losses_B)).sum()


def own_losses(config: TrainConfig, logits_BC: Tensor, batch: Batch) -> Tensor:
    """The loss of each example by its targets."""
    targets_BC = batch.targets_BC.to(logits_BC)
    if config.loss == "softmax":
        return F.cross_entropy(logits_BC, targets_BC, reduction="none")
    return F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").sum(dim=-1)


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
