"""CIFAR-100 at 384 pixels from a pretrained model: ViT paper (arXiv:2010.11929), appendix B.1.1, table 4.

Learning rate and crop are those of big_vision's configs/transfer.py for AugReg's B/32 of ImageNet-21k. Expected from
it: 91.35 % top-1 (91.09 to 91.62 in five runs). The paper tries learning rates of 0.001, 0.003, 0.01 and 0.03.
"""

from vit_core import CheckpointConfig
from vit_train.config import Data, TrainConfig
from vit_train.recipes._transfer import RESMALL_CROP, transfer_at_384


def finetune(init: CheckpointConfig) -> TrainConfig:
    data = Data(name="cifar100", train_split="train[:98%]", eval_split="test")
    return transfer_at_384(init, data, learning_rate=0.01, steps=10_000, warmup=500, crop=RESMALL_CROP)
