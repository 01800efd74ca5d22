"""A checkpoint's model in JAX, to predict with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.image_batches import ImageArrays
from vit_core.parameters import Stack, parameters, stacks
from vit_jax.sharding import of_parameter
from vit_train import config
from vit_train.engines.jax.forward import Forward
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.on_mesh import OnMesh, place
from vit_train.engines.jax.optimizers import from_disk_layout


class JaxPredictor(OnMesh):
    """Predicts by a checkpoint's weights and preprocessing; see engine.MakePredictor. Raises InputError for float64
    without jax_enable_x64, and for a mesh that the devices cannot form."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        mesh: config.Mesh | None = None,
    ) -> None:
        model = checkpoint.config.model
        super().__init__(make_mesh(mesh or config.Mesh(), model))
        if dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise InputError("dtype: float64 needs jax_enable_x64 (jax.config.update), or set dtype float32")
        self.dtype = dtype
        preprocessing, _ = checkpoint.config.preparation()
        by_name = stacks(parameters(model).values())
        self.forward = Forward(model, preprocessing, by_name, self.mesh, compute_dtype or dtype)
        self.params = {name: self._place(stack, checkpoint.arrays) for name, stack in by_name.items()}

    def predict(self, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] of uint8 images, both this process's rows."""
        return self.predict_with(self.forward, self.params, images_BHWC).astype(self.dtype)

    def _place(self, stack: Stack, arrays: LazyArrays) -> jax.Array:
        sharding = NamedSharding(self.mesh, of_parameter(stack))
        like = jax.ShapeDtypeStruct(stack.jax_shape, jnp.dtype(self.dtype), sharding=sharding)
        layers = {row.name: convert(arrays[row.name], self.dtype) for row in stack.rows}
        return place(like, from_disk_layout(stack, layers, like.shape))
