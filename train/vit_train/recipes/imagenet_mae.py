"""B/16 on the images of ImageNet-1k without their labels, 1,600 epochs as a masked autoencoder (arXiv:2111.06377).

Values are those of that paper's table 8, and of PRETRAIN.md and main_pretrain.py of facebookresearch/mae: 75 % of the
patches are hidden, the target is normalized, the decoder has 8 blocks of width 512, and the learning rate is 1.5e-4 for
each 256 images of a batch. The 1,600 epochs are those of the published encoders (FINETUNE.md, notes); the command there
has 800. Expected: 83.6 % top-1 of ImageNet-1k after `vit finetune imagenet_mae` (the paper's table 3), which is the
recipe mae_finetune. For the paper's L/16: --model L/16.

The paper's code flips images too, which its table does not say. It decays the class and mask tokens, which no recipe
here does. Any folder of images will do: --data ./photos.
"""

from vit_core import CheckpointConfig, variant
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig
from vit_train.recipes import mae_finetune
from vit_train.recipes._imagenet import IMAGENET_1K, LARGE_RUN, META, TRAIN_1K, steps_of

BATCH = 4096


def pretrain() -> TrainConfig:
    return TrainConfig(
        model=variant(
            "B/16",
            image_size=224,
            num_classes=0,
            activation="gelu",
            position_embedding="sincos2d_mae",
            position_resampling="bicubic",
        ),
        mae=MaskedAutoencoder(mask_ratio=0.75, normalize_target=True),
        data=Data(name=IMAGENET_1K.name, labelled=False),
        preprocessing=Preprocessing(image_size=224, crop_fraction=224 / 256, **META),
        augmentation=Augmentation(crop_area=(0.2, 1.0), flip=0.5),
        optimizer=Optimizer(learning_rate=1.5e-4 * BATCH / 256, weight_decay=0.05, beta2=0.95),
        schedule=Schedule(warmup_steps=steps_of(40, TRAIN_1K, BATCH)),
        steps=steps_of(1600, TRAIN_1K, BATCH),
        batch_size=BATCH,
        **LARGE_RUN,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    return mae_finetune.finetune(init)
