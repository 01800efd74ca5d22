"""A function of a model on the devices of this machine: uint8 images in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vit_core.naflex import PatchedImages, Patches, placed
from vit_torch import arrays, naflex
from vit_torch.model import ViT

if TYPE_CHECKING:
    from vit_core.image_batches import ImageArrays
    from vit_core.preprocess import Preprocessing


class OnDevices:
    """Computes a function of a model and normalized images on one or several devices: each has a copy of the model and
    computes a part of each batch.

    function: from the model and images [B, C, H, W], or patches of images of any aspect, in the model's type, to values
    [B, ...]. devices: by default all CUDA devices, without any the processor. A `vit_core.streaming.DeviceFunction`.
    """

    def __init__(
        self,
        model: ViT,
        preprocessing: Preprocessing,
        function: Callable[[ViT, Any], Tensor] = ViT.__call__,
        devices: Sequence[str | torch.device] | None = None,
    ) -> None:
        from vit_core.preprocess import offset_and_scale

        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        places = [torch.device(device) for device in devices or cuda or ["cpu"]]
        self.models = [deepcopy(model).to(device).eval() for device in places[1:]]
        self.models.insert(0, model.to(places[0]).eval())
        self.function, self.places, self.devices = function, places, len(places)
        self.constants = [torch.from_numpy(constant) for constant in offset_and_scale(preprocessing)]

    @property
    def hardware(self) -> str:
        """Number and kind of the devices, as text for messages."""
        place = self.places[0]
        kind = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
        return f"{self.devices} x {kind}"

    def start(self, images: ImageArrays) -> Callable[[], np.ndarray]:
        """Starts to compute the values of uint8 or uint16 images, whose number is a multiple of the number of devices.
        Returns a function that waits for the values [B, ...]. (A processor computes them here.)"""
        with torch.inference_mode():
            values = [self._values(model, part) for model, part in zip(self.models, self._parts(images), strict=True)]
        return lambda: np.concatenate([arrays.to_numpy(part) for part in values])

    def _parts(self, images: ImageArrays) -> Sequence[Tensor | Patches]:
        """What each device is given."""
        if not isinstance(images, PatchedImages):
            return torch.from_numpy(images).chunk(self.devices)
        cut = [
            [None] * self.devices if x is None else torch.from_numpy(x).chunk(self.devices)
            for x in placed(images, self.models[0].config)
        ]
        return [Patches(*part) for part in zip(*cut, strict=True)]

    def _values(self, model: ViT, pixels_BHWC: Tensor | Patches) -> Tensor:
        weight = model.patch_embed.proj.weight
        offset, scale = (constant.to(weight.device) for constant in self.constants)
        if isinstance(pixels_BHWC, Patches):
            moved = Patches(*(None if x is None else x.to(weight.device, non_blocking=True) for x in pixels_BHWC))
            return self.function(model, naflex.normalized(moved, offset, scale, weight.dtype))
        x_BHWC = (pixels_BHWC.to(weight.device, non_blocking=True).float() - offset) * scale
        return self.function(model, x_BHWC.permute(0, 3, 1, 2).to(weight.dtype))
