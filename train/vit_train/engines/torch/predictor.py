"""A checkpoint's model in PyTorch, to predict with."""

import numpy as np
import torch

import vit_torch
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.image_batches import ImageArrays
from vit_train.config import Mesh
from vit_train.engines.torch.member import Member
from vit_train.engines.torch.network import Network


class TorchPredictor(Member):
    """Predicts by a checkpoint's weights and preprocessing, which every process has in whole; see engine.MakePredictor.
    Raises InputError for a mesh with slices of the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        if mesh is not None and (mesh.fsdp > 1 or mesh.tensor > 1):
            raise InputError(f"mesh: {mesh}: in PyTorch every process predicts by the whole model; use mesh.data only")
        preprocessing, _ = checkpoint.config.preparation()
        self.dtype = dtype
        compute: torch.dtype = getattr(torch, compute_dtype or dtype)
        network = Network(vit_torch.load(checkpoint, dtype=dtype), preprocessing, compute)
        self.network = network.to(self.device).eval()

    @torch.no_grad()
    def predict(self, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] of uint8 images, both this process's rows."""
        images = self.images_on_device(images_BHWC, self.network.model.config, self.dtype)
        logits_BC: torch.Tensor = self.network(images)
        return logits_BC.cpu().to(getattr(torch, self.dtype)).numpy()
