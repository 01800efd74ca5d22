"""Oxford-IIIT Pets at 384 pixels from a pretrained model: ViT paper (arXiv:2010.11929), appendix B.1.1, table 4.

Learning rate and crop are those of big_vision's configs/transfer.py for AugReg's B/32 of ImageNet-21k. Expected from
it: 93.78 % top-1 (93.62 to 94.00 in five runs). The paper tries learning rates of 0.001, 0.003, 0.01 and 0.03.
"""

from vit_core import CheckpointConfig
from vit_train.config import Data, TrainConfig
from vit_train.recipes._transfer import INCEPTION_CROP, transfer_at_384


def finetune(init: CheckpointConfig) -> TrainConfig:
    data = Data(name="oxford_iiit_pet", train_split="train[:90%]", eval_split="test")
    return transfer_at_384(init, data, learning_rate=0.003, steps=500, warmup=100, crop=INCEPTION_CROP)
