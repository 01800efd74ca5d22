"""ImageNet-1k from a self-supervised B/16, by layer-wise learning rates: MAE (arXiv:2111.06377, table 9).

The transfer that BEiT began (arXiv:2106.08254, table 9). Values are those for B in FINETUNE.md of facebookresearch/mae,
with its learning rate of 5e-4 for each 256 images of a batch. Expected from MAE's pretrained B/16: 83.6 % top-1 (the
mean of four runs is 83.57 %).

The checkpoint's own pooling is kept. The paper's run reads the mean of the patch tokens, with a LayerNorm after it,
which MAE's encoder does not have: its last LayerNorm is a new one.
"""

from vit_core import CheckpointConfig
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.recipes._imagenet import IMAGENET_1K, LARGE_RUN, RAND_M9, TRAIN_1K, steps_of

BATCH = 1024


def finetune(init: CheckpointConfig) -> TrainConfig:
    return TrainConfig(
        model=init.model.replace(stochastic_depth=0.1),
        data=IMAGENET_1K,
        preprocessing=init.preprocessing,
        augmentation=Augmentation(
            crop_area=(0.08, 1.0),
            flip=0.5,
            rand_augment=RAND_M9,
            erasing=0.25,
            erasing_fill="noise",
            mixup=0.8,
            cutmix=1.0,
        ),
        optimizer=Optimizer(learning_rate=5e-4 * BATCH / 256, weight_decay=0.05, layer_decay=0.65),
        schedule=Schedule(warmup_steps=steps_of(5, TRAIN_1K, BATCH), final=1e-6 / (5e-4 * BATCH / 256)),
        label_smoothing=0.1,
        head="new",
        steps=steps_of(100, TRAIN_1K, BATCH),
        batch_size=BATCH,
        **LARGE_RUN,
    )
