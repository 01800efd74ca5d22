"""ViT-5-S/16 on ImageNet-1k for 800 epochs at 224 pixels (arXiv:2602.08071; its code, section Training of README.md).

Values are those of the one command for training in wangf3014/ViT-5: the optimization and augmentation of DeiT III (the
recipe deit3_s16, which says what differs here), for a network with RMSNorm, rotary positions beside learned ones,
registers, normed queries and keys, and no bias on them. Expected: no table of these runs was at hand; the abstract has
84.2 % top-1 for ViT-5-B/16, whose command the README does not give.

Other than there: weights begin as all of this project do, where the authors' code draws them with standard deviation
0.02.
"""

from vit_core import CheckpointConfig, variant
from vit_train.config import TrainConfig
from vit_train.recipes import deit3_s16


def pretrain() -> TrainConfig:
    model = variant("vit5-S/16", image_size=224, num_classes=1000, stochastic_depth=0.05)
    return deit3_s16.pretrain().replace(model=model)


def finetune(init: CheckpointConfig) -> TrainConfig:
    """For 20 epochs, as in the README's example of fine-tuning: batch 512, 1e-5, weight decay 0.1, smoothing 0.1."""
    return deit3_s16.finetune_at(init, init.model.image_size[0], stochastic_depth=0.05)
