"""Base class of the engine and the predictor in JAX: mesh, parameters on it, and this process's rows of a batch."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vit_core import ViTConfig
from vit_core.image_batches import ImageArrays
from vit_core.naflex import PatchedImages, Patches, placed
from vit_train.engines.jax import mesh as meshes
from vit_train.engines.jax.forward import Forward, Params
from vit_train.engines.jax.processes import joined_processes


class OnMesh:
    """One process of a computation that is spread over a mesh."""

    name = "jax"

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.joined = joined_processes()
        self.process, self.processes, self.total = self.joined.index, self.joined.count, self.joined.total
        self.devices = mesh.size
        local = jax.local_devices()
        self.hardware = f"{len(local)} x {local[0].device_kind}"
        self.primary = meshes.is_primary(mesh)

    @property
    def batch_shards(self) -> int:
        """Number of parts that a batch is divided into."""
        return meshes.batch_shards(self.mesh)

    def rows(self, size: int) -> np.ndarray:
        """Which rows of a batch of `size` this process makes."""
        return meshes.process_rows(self.mesh, size)

    def to_global(self, rows: np.ndarray, layout: str, count: int) -> jax.Array | np.ndarray:
        """The global array from this process's rows of it; count: number of examples in them."""
        return meshes.to_global(self.mesh, rows, layout, count * self.batch_shards // len(self.rows(self.batch_shards)))

    def images_to_global(self, images: ImageArrays, model: ViTConfig) -> Any:
        """The global batch of images, or of patches with what the model needs of their places, from this process's
        rows."""
        given: np.ndarray | Patches
        if isinstance(images, PatchedImages):
            given = placed(images, model, np.float64 if jax.config.read("jax_enable_x64") else np.float32)
        else:
            given = images
        return jax.tree.map(lambda rows: self.to_global(rows, "batch", len(rows)), given)

    def predict_with(self, forward: Forward, params: Params, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] of uint8 images, both this process's rows."""
        images = self.images_to_global(images_BHWC, forward.model_config)
        with jax.set_mesh(self.mesh):
            logits_BC = forward.logits(params, images)
        return meshes.to_local(logits_BC)


def place(like: jax.ShapeDtypeStruct, host: np.ndarray) -> jax.Array:
    """A copy of an array with the type and sharding of `like`: each device gets its part."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: np.array(host[index], like.dtype))


def gather(x: jax.Array) -> np.ndarray:
    """A whole array on every host; every process has to call it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))
