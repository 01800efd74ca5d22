"""The models in JAX of `vit bench model`: each with its forward pass and its train step with optax's AdamW, jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import vit_jax
from vit_cli.benchmarks.implementations import CLASSES, Implementation, Kind, Setting, Stopwatch, Turn
from vit_cli.benchmarks.jax_peers import PEERS, Apply
from vit_train.engines.jax.peak import matmul_flops

State = tuple[Any, Any]
"""Parameters, and the optimizer's statistics."""


class JaxRunner:
    """A model of a JAX library on the default device; see implementations.Runner.

    With bfloat16, the parameters of the forward pass are bfloat16; training keeps them in float32 and casts them.
    """

    def __init__(self, implementation: Implementation, setting: Setting) -> None:
        if setting.dtype == "float32":  # as in PyTorch: no TF32 on GPUs, no single bfloat16 pass on TPUs
            jax.config.update("jax_default_matmul_precision", "highest")
        self.implementation, self.setting, self.dtype = implementation, setting, jnp.dtype(setting.dtype)
        size = setting.batch_size, *setting.model.image_size, setting.model.channels
        self.images_BHWC = jax.random.normal(jax.random.key(0), size, self.dtype)
        self.labels_B = jax.random.randint(jax.random.key(1), size[:1], 0, CLASSES)
        self.prepared: dict[Kind, Callable[[], object]] = {}

    def run(self, kind: Kind, calls: int) -> Turn:
        if kind not in self.prepared:
            prepare = self._prepare_forward if kind == "forward" else self._prepare_train
            apply, initial = open_network(self.implementation, self.setting)
            self.prepared[kind] = prepare(apply, initial())
        call = self.prepared[kind]
        watch, result = Stopwatch(calls), None
        for _ in range(calls):
            result = call()
        watch.handed_over()
        jax.block_until_ready(result)
        return watch.turn()

    def peak(self) -> float:
        return matmul_flops(self.setting.dtype)

    def device_memory(self) -> int | None:
        if jax.default_backend() == "cpu":
            return None
        return int((jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"])

    def _prepare_forward(self, apply: Apply, params: Any) -> Callable[[], object]:
        compute, params = jax.jit(apply), self._cast(params)
        return lambda: compute(params, self.images_BHWC)

    def _prepare_train(self, apply: Apply, params: Any) -> Callable[[], object]:
        step, begin = train_step(apply, self.dtype)
        jitted, state = jax.jit(step, donate_argnums=0), (params, jax.jit(begin)(params))

        def train() -> object:
            nonlocal state
            state, loss = jitted(state, self.images_BHWC, self.labels_B)
            return loss, state  # the loss is available before the update

        return train

    def _cast(self, params: Any) -> Any:
        return cast(params, self.dtype)


def train_step(
    apply: Apply, dtype: Any
) -> tuple[Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]], Any]:
    """The step (state, images_BHWC, labels_B) -> (state, loss) with AdamW, the same for every implementation; and the
    function that makes the optimizer's part of the state from the parameters."""
    optimizer = optax.adamw(1e-3, weight_decay=0.05)

    def step(state: State, images_BHWC: jax.Array, labels_B: jax.Array) -> tuple[State, jax.Array]:
        params, statistics = state

        def loss_of(params: Any) -> jax.Array:
            logits_BC = apply(cast(params, dtype), images_BHWC).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_B).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, statistics = optimizer.update(gradients, statistics, params)
        return (optax.apply_updates(params, updates), statistics), loss

    return step, optimizer.init


def cast(params: Any, dtype: Any) -> Any:
    """Parameters in the type of the computation."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def open_network(implementation: Implementation, setting: Setting) -> tuple[Apply, Callable[[], Any]]:
    """An implementation's forward pass, and the function that makes its parameters, which jax.eval_shape can trace."""
    if (open_peer := PEERS.get(implementation.name)) is not None:
        assert implementation.checkout is not None
        return open_peer(implementation.checkout, setting)

    def build() -> vit_jax.ViT:
        return vit_jax.ViT(setting.model, rngs=nnx.Rngs(0), scan=implementation.name.endswith("scanned"))

    graph, _ = nnx.split(nnx.eval_shape(build))
    return lambda params, images_BHWC: nnx.merge(graph, params)(images_BHWC), lambda: nnx.state(build())
