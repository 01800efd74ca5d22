"""S/16 on ImageNet-1k for 300 epochs, after "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580, table 1).

The recipe imagenet_s16, longer. Expected: 80.0 % top-1.
"""

from vit_train.config import TrainConfig
from vit_train.recipes import imagenet_s16
from vit_train.recipes._imagenet import TRAIN_1K_99, steps_of


def pretrain() -> TrainConfig:
    short = imagenet_s16.pretrain()
    return short.replace(steps=steps_of(300, TRAIN_1K_99, short.batch_size))
