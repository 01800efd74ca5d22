"""Low-rank adapters in the PyTorch twin, beside the weights (vit_core.lora explains them)."""

from collections.abc import Mapping

import numpy as np
import torch

from vit_core.lora import Lora, adapter_rows, adapters
from vit_torch import arrays
from vit_torch.linear import AdaptedLinear
from vit_torch.model import ViT


def attach(model: ViT, lora: Lora, values: Mapping[str, np.ndarray]) -> None:
    """Gives a model adapters with these values, by canonical name, in the type of the model's weights.

    The weights stay the parameters they were, under their names; the adapters are the modules `lora_A` and `lora_B` of
    the layers that have them.
    """
    for name in adapters(model.config, lora):
        module = name.removesuffix(".weight")
        model.set_submodule(module, AdaptedLinear(model.get_submodule(module), lora.rank, lora.scale))  # type: ignore[arg-type]
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name in adapter_rows(model.config, lora):
            found[name].copy_(arrays.from_numpy(values[name]))
