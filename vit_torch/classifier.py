"""The model's head, and the methods by which timm's users change it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from vit_core.parameters import Parameter, initial_value, parameters
from vit_torch import arrays
from vit_torch.linear import Linear

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig
    from vit_torch.stacking import Remat


class Classifier(nn.Module):
    """A model that ends in a head, or in two with distillation; without classes in none."""

    config: ViTConfig
    checkpoint: CheckpointConfig | None
    pre_logits: nn.Module
    remat: Remat

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of the parameter table that the model has."""
        return parameters(self.config)

    def add_heads(self, config: ViTConfig) -> None:
        """Sets `head`, and with distillation `head_dist`, without initial values."""
        head = partial(Linear, config.features, config.num_classes, bias=config.head_bias)
        self.head = head() if config.num_classes else nn.Identity()
        if config.distillation == "head":
            self.head_dist = head() if config.num_classes else nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, for timm.optim.create_optimizer_v2: all but the kernels. (The
        query of attention pooling too, which timm's own class decays.)"""
        return {name for name, row in self.table.items() if not row.decay}

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, tuple[int, ...] | None]]]:
        """Patterns of the names of each layer's parameters, for timm.optim.create_optimizer_v2(..., layer_decay=...):
        embeddings, then each block (the last one with the final norm), and all others in a last group. coarse: has no
        effect, as in timm."""
        embeddings = r"^(?:cls_token|dist_token|reg_token|pos_embed|shared_rel_pos|patch_embed|norm_pre)"
        return {"stem": embeddings, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99_999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the backward pass computes each block again (remat "full") or keeps its activations ("none")."""
        self.remat = "full" if enable else "none"

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head; with distillation both heads. nn.Identity without classes."""
        return (self.head, self.head_dist) if self.config.distillation == "head" else self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a new one with `num_classes` outputs and the initial values of the config (zeros, unless
        head_bias_init is set), as `vit_torch.load(..., num_classes=...)` does. 0: removes the head; the model then
        returns the features that are the head's inputs.

        Labels are dropped. Make the optimizer afterwards: the head's parameters are new ones.
        """
        self.config = self.config.with_classes(num_classes)
        if self.config.representation is None:
            self.pre_logits = nn.Identity()
        self.add_heads(self.config)
        rows, like = parameters(self.config), next(self.parameters())
        for name, parameter in self.named_parameters():
            if name.startswith(("head.", "head_dist.")):
                parameter.data = arrays.from_numpy(initial_value(rows[name], 0)).to(like)
        if self.checkpoint is not None:
            self.checkpoint = self.checkpoint.with_head_of(self.config)
        self.train(self.training)
