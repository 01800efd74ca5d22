"""ImageNet-1k at 384 pixels from a pretrained model: ViT paper (arXiv:2010.11929), appendix B.1.1, table 4.

Expected top-1: 83.97 % for the paper's B/16 of ImageNet-21k (its table 5); 85.49 % for AugReg's B/16 (README of
google-research/vision_transformer); 83.27 % for AugReg's B/32 with this learning rate (big_vision's
configs/transfer.py). The paper tries learning rates of 0.003, 0.01, 0.03 and 0.06.
"""

from vit_core import CheckpointConfig
from vit_train.config import TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K_99
from vit_train.recipes._transfer import INCEPTION_CROP, transfer_at_384


def finetune(init: CheckpointConfig) -> TrainConfig:
    return transfer_at_384(init, IMAGENET_1K_99, learning_rate=0.03, steps=20_000, warmup=500, crop=INCEPTION_CROP)
