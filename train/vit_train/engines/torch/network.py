"""The forward pass of a model in PyTorch: uint8 images to logits, in the compute dtype."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import vit_torch
from vit_core.naflex import Patches
from vit_core.preprocess import Preprocessing, offset_and_scale
from vit_torch import naflex
from vit_torch.masked_autoencoder import MaskedAutoencoder
from vit_train.data.batches import Batch
from vit_train.engines.torch.sharding import is_sharded


class Network(nn.Module):
    """uint8 images to logits: normalized, mixed in pairs as a batch says (in training), through the model. For a masked
    autoencoder the loss of each image is in the place of logits."""

    offset: Tensor
    scale: Tensor

    def __init__(
        self, model: vit_torch.ViT, preprocessing: Preprocessing, compute: torch.dtype, mixes: bool = False
    ) -> None:
        super().__init__()
        self.model, self.compute, self.mixes = model, compute, mixes
        for name, constants_C in zip(("offset", "scale"), offset_and_scale(preprocessing), strict=True):
            self.register_buffer(name, torch.from_numpy(constants_C), persistent=False)

    def forward(self, images_BHWC: Tensor | Patches, batch: Batch | None = None, return_heads: bool = False) -> Any:
        """Logits [B, classes] of uint8 images; batch: of training, with its masks, its patch size and how images are
        mixed. return_heads: return what the model's `forward_heads` does."""
        x_BCHW, masks = self.normalize(images_BHWC, batch), None if batch is None else batch.masks
        options: dict[str, Any] = {"return_heads": True} if return_heads else {}
        if batch is not None and batch.patch_size is not None:
            options["patch_size"] = batch.patch_size
        # FSDP casts as it gathers.
        if is_sharded(self.model) or next(self.model.parameters()).dtype == self.compute:
            return self.model(x_BCHW, masks, **options)
        cast = {name: p.to(self.compute) for name, p in self.model.named_parameters()}
        return functional_call(self.model, cast, (x_BCHW, masks), options)

    def normalize(self, images_BHWC: Tensor | Patches, mix: Batch | None = None) -> Tensor | Patches:
        """uint8 images as input of the model, [B, C, H, W] in the compute dtype (where they are to be predicted too, in
        float32 at least); mixed in pairs as a batch says."""
        if isinstance(images_BHWC, Patches):
            return naflex.normalized(images_BHWC, self.offset, self.scale, self.compute)
        x_BHWC = (images_BHWC.float() - self.offset) * self.scale
        if mix is not None and self.mixes:
            x_BHWC = mixed(x_BHWC.to(torch.promote_types(self.compute, torch.float32)), mix)
        predicted = isinstance(self.model, MaskedAutoencoder)
        dtype = torch.promote_types(self.compute, torch.float32) if predicted else self.compute
        return x_BHWC.permute(0, 3, 1, 2).to(dtype)


def mixed(x_BHWC: Tensor, batch: Batch) -> Tensor:
    """Images mixed with the other image of their pair, by the batch's weights and boxes."""
    B, H, W, C = x_BHWC.shape
    partner_BHWC = x_BHWC.reshape(B // 2, 2, H, W, C).flip(1).reshape(B, H, W, C)
    top, left, bottom, right = (side[:, None, None] for side in batch.boxes_B4.T)
    y_H1, x_1W = torch.arange(H, device=x_BHWC.device)[:, None], torch.arange(W, device=x_BHWC.device)
    inside_BHW = (y_H1 >= top) & (y_H1 < bottom) & (x_1W >= left) & (x_1W < right)
    own_BHW1 = torch.where(inside_BHW, 0, batch.own_share_B[:, None, None])[..., None].to(x_BHWC)
    mixed_BHWC: Tensor = own_BHW1 * x_BHWC + (1 - own_BHW1) * partner_BHWC
    return mixed_BHWC
