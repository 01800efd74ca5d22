"""The losses of a batch in JAX. engines.torch.losses is the same in PyTorch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from vit_train.config import TrainConfig
from vit_train.data.batches import Batch

HeadValues = tuple[jax.Array, jax.Array]
"""The inputs of a head [B, features], and its logits [B, classes]."""


def total_loss(config: TrainConfig, outputs: jax.Array, batch: Batch) -> jax.Array:
    """The loss summed over the examples by their weights, in float32 at least.

    outputs: logits [B, classes], or of a masked autoencoder the loss of each example.
    """
    outputs = precise(outputs)
    losses_B = outputs if config.masked is not None else own_losses(config, outputs, batch)
    return (losses_B * batch.weights_B.astype(losses_B.dtype)).sum()


def distillation_loss(
    config: TrainConfig, student: Sequence[HeadValues], teacher: HeadValues, batch: Batch
) -> jax.Array:
    """`total_loss` of a run that also learns from a teacher (vit_train.config.Distillation). student: of each head."""
    distillation, (own, learning) = config.distillation, (student[0], student[-1])
    losses_B = own_losses(config, precise(own[1]), batch)
    features_BD, logits_BC = map(precise, learning)
    their_features_BD, their_logits_BC = (jax.lax.stop_gradient(precise(x)) for x in teacher)
    if distillation.kind == "hard":
        taught_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, their_logits_BC.argmax(axis=-1))
    elif distillation.kind == "logits":
        T = distillation.temperature
        ours_BC, theirs_BC = jax.nn.log_softmax(logits_BC / T), jax.nn.log_softmax(their_logits_BC / T)
        taught_B = T**2 * (jnp.exp(theirs_BC) * (theirs_BC - ours_BC)).sum(axis=-1)
    else:
        norms_B = jnp.sqrt(jnp.square(features_BD).sum(axis=-1) * jnp.square(their_features_BD).sum(axis=-1))
        taught_B = 1 - (features_BD * their_features_BD).sum(axis=-1) / norms_B
    losses_B = (1 - distillation.weight) * losses_B + distillation.weight * taught_B
    return (losses_B * batch.weights_B.astype(losses_B.dtype)).sum()


def own_losses(config: TrainConfig, logits_BC: jax.Array, batch: Batch) -> jax.Array:
    """The loss of each example by its targets."""
    targets_BC = batch.targets_BC.astype(logits_BC.dtype)
    if config.loss == "softmax":
        losses_B: jax.Array = optax.softmax_cross_entropy(logits_BC, targets_BC)
    else:
        losses_B = optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(axis=-1)
    return losses_B


def precise(x: jax.Array) -> jax.Array:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
