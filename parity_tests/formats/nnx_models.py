"""Models with the module names of JAX projects that are on no index, built with Flax NNX from their documented code.

bonsai: jax-ml/bonsai, bonsai/models/vit/modeling.py. jimm: pythoncrazy/jimm, src/jimm/common/{vit,transformer}.py and
models/ of July 2025, and Locamage/jimm's VisionTransformer of June 2025. Every parameter is float64 and random.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, SIDE, CLASSES = 24, 2, 3, 40, 4, 12, 5
KINDS: dict[str, Any] = {"param_dtype": jnp.float64, "dtype": jnp.float64}
TOKENS = (SIDE // PATCH) ** 2


def attend(query: jax.Array, key: jax.Array, value: jax.Array, **_: Any) -> jax.Array:
    """Attention in float64; Flax's own always computes the softmax in float32."""
    scores = jnp.einsum("bnhk,bmhk->bhnm", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhnm,bmhk->bnhk", jax.nn.softmax(scores), value)


def attention(rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, dropout_rate=0.0, attention_fn=attend, rngs=rngs, **KINDS)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, rngs=rngs, **KINDS)


def norm(epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(WIDTH, epsilon=epsilon, use_fast_variance=False, rngs=rngs, **KINDS)


def patches(rngs: nnx.Rngs, bias: bool = True) -> nnx.Conv:
    size = (PATCH, PATCH)
    return nnx.Conv(3, WIDTH, size, strides=size, padding="VALID", use_bias=bias, rngs=rngs, **KINDS)


def tokens(*shape: int) -> nnx.Param[jax.Array]:
    return nnx.Param(jnp.zeros((1, *shape, WIDTH), jnp.float64))


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


class BonsaiEmbeddings(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.projection = patches(rngs)
        self.cls_token, self.pos_embeddings = tokens(1), tokens(TOKENS + 1)
        self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BND = self.projection(x_BHWC).reshape(len(x_BHWC), -1, WIDTH)
        cls_B1D = jnp.tile(self.cls_token[...], (len(x_BHWC), 1, 1))
        return jnp.concatenate([cls_B1D, x_BND], axis=1) + self.pos_embeddings[...]


class BonsaiLayer(nnx.Module):
    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.attention = attention(rngs)
        self.linear1, self.linear2 = linear(WIDTH, HIDDEN, rngs), linear(HIDDEN, WIDTH, rngs)
        self.layernorm_before, self.layernorm_after = norm(epsilon, rngs), norm(epsilon, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.linear2(jax.nn.gelu(self.linear1(self.layernorm_after(x))))


class Bonsai(nnx.Module):
    """ViTClassificationModel."""

    def __init__(self, epsilon: float = 1e-12) -> None:
        rngs = nnx.Rngs(0)
        self.pos_embeddings = BonsaiEmbeddings(rngs)
        self.layers = nnx.List([BonsaiLayer(epsilon, rngs) for _ in range(DEPTH)])
        self.ln, self.classifier = norm(epsilon, rngs), linear(WIDTH, CLASSES, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = self.pos_embeddings(x_BHWC)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.ln(x)[:, 0])


class JimmBlock(nnx.Module):
    def __init__(self, activation: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs) -> None:
        self.norm1, self.attn, self.norm2 = norm(1e-5, rngs), attention(rngs), norm(1e-5, rngs)
        drop = nnx.Dropout(0.0, rngs=rngs)
        self.mlp = nnx.Sequential(
            linear(WIDTH, HIDDEN, rngs), activation, drop, linear(HIDDEN, WIDTH, rngs), nnx.Dropout(0.0, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class JimmTransformer(nnx.Module):
    def __init__(self, activation: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs) -> None:
        self.blocks = nnx.Sequential(*[JimmBlock(activation, rngs) for _ in range(DEPTH)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.blocks(x)


class JimmPooling(nnx.Module):
    """MultiHeadAttentionPoolingHead."""

    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.probe, self.attn, self.layernorm = tokens(1), attention(rngs), norm(epsilon, rngs)
        self.mlp = nnx.Sequential(linear(WIDTH, HIDDEN, rngs), nnx.gelu, linear(HIDDEN, WIDTH, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.attn(jnp.tile(self.probe[...], (len(x), 1, 1)), x, x)
        return (x + self.mlp(self.layernorm(x)))[:, 0]


class JimmTower(nnx.Module):
    """VisionTransformerBase; epsilon: of the norms outside the blocks."""

    def __init__(self, epsilon: float, *, clip: bool = False, attention_pooling: bool = False) -> None:
        rngs = nnx.Rngs(0)
        self.pooling, self.clip = attention_pooling, clip
        self.patch_embeddings = patches(rngs, bias=not clip)
        if not attention_pooling:
            self.cls_token = tokens(1)
        else:
            self.MAPHead = JimmPooling(epsilon, rngs)
        self.position_embeddings = tokens(TOKENS + (not attention_pooling))
        if clip:
            self.ln_pre = norm(epsilon, rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.transformer = JimmTransformer(quick_gelu if clip else nnx.gelu, rngs)
        self.ln_post = norm(epsilon, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = self.patch_embeddings(x_BHWC).reshape(len(x_BHWC), -1, WIDTH)
        if not self.pooling:
            x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
        x = x + self.position_embeddings[...]
        x = self.ln_post(self.transformer(self.ln_pre(x) if self.clip else x))
        return self.MAPHead(x) if self.pooling else x[:, 0]


class JimmViT(nnx.Module):
    """VisionTransformer; its own code has the epsilon 1e-12 outside the blocks."""

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.encoder = JimmTower(epsilon)
        self.classifier = linear(WIDTH, CLASSES, nnx.Rngs(1))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.classifier(self.encoder(x_BHWC))


class JimmCLIP(nnx.Module):
    """CLIP's image tower and projection, and something of its text tower."""

    def __init__(self) -> None:
        self.vision_model = JimmTower(1e-5, clip=True)
        self.visual_projection = linear(WIDTH, CLASSES, nnx.Rngs(1), bias=False)
        self.text_model = JimmTransformer(quick_gelu, nnx.Rngs(2))
        self.logit_scale = nnx.Param(jnp.zeros((), jnp.float64))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.visual_projection(self.vision_model(x_BHWC))


class JimmSigLIP(nnx.Module):
    """SigLIP's image tower; its own code has the epsilon 1e-6 outside the blocks."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        self.vision_model = JimmTower(epsilon, attention_pooling=True)
        self.logit_scale = nnx.Param(jnp.zeros((), jnp.float64))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.vision_model(x_BHWC)


class JimmBefore(nnx.Module):
    """VisionTransformer of June 2025, when `encoder` was the name of the blocks."""

    def __init__(self, epsilon: float = 1e-12) -> None:
        rngs = nnx.Rngs(0)
        self.patch_embeddings, self.position_embeddings, self.cls_token = patches(rngs), tokens(TOKENS + 1), tokens(1)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.encoder = JimmTransformer(nnx.gelu, rngs)
        self.final_norm, self.classifier = norm(epsilon, rngs), linear(WIDTH, CLASSES, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = self.patch_embeddings(x_BHWC).reshape(len(x_BHWC), -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1) + self.position_embeddings[...]
        return self.classifier(self.final_norm(self.encoder(x))[:, 0])


def randomized(model: Any, seed: int = 0) -> Any:
    """The model in evaluation mode with every parameter random, kernels on the scale of their inputs."""
    rng = np.random.default_rng(seed)
    model.eval()
    state = nnx.state(model, nnx.Param)
    values = {}
    for path, variable in nnx.to_flat_state(state):
        sample = rng.standard_normal(variable.shape)
        if path[-1] == "kernel":
            outputs = variable.shape[-2:] if path[-2] in ("query", "key", "value") else variable.shape[-1:]
            sample /= np.sqrt(sample.size / np.prod(outputs))
        values[path] = 1 + 0.3 * sample if path[-1] == "scale" else 0.5 * sample
    flat = [(path, variable.replace(jnp.asarray(values[path]))) for path, variable in nnx.to_flat_state(state)]
    nnx.update(model, nnx.from_flat_state(flat))
    return model
