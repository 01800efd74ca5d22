"""Fine-tuning at 384 pixels as in the ViT paper and big_vision, for any data set."""

from vit_core import CheckpointConfig
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig

SIZE, RESIZED = 384, 448
"""Pixels of the images, and of what they are cut out of."""
INCEPTION_CROP = Augmentation(crop_area=(0.05, 1.0), flip=0.5)
"""big_vision's inception_crop and flip_lr."""
RESMALL_CROP = Augmentation(random_crop=True, flip=0.5)
"""big_vision's resize_small(448), random_crop(384) and flip_lr."""


def transfer_at_384(
    init: CheckpointConfig, data: Data, *, learning_rate: float, steps: int, warmup: int, crop: Augmentation
) -> TrainConfig:
    """SGD with momentum 0.9, cosine, batch 512, clipped at norm 1, without weight decay, from a head of zeros.

    The table of the ViT paper (arXiv:2010.11929, appendix B.1.1, table 4), with the crops, warm-ups and split of
    big_vision's configs/transfer.py. The hidden layer of a pretraining head is removed (the paper's section 3.2).
    """
    preprocessing = init.preprocessing or Preprocessing(image_size=SIZE, channels=init.model.channels)
    return TrainConfig(
        model=init.model.replace(
            image_size=SIZE, representation=None, head_bias_init=0.0, dropout=0.0, stochastic_depth=0.0
        ),
        data=data,
        preprocessing=preprocessing.replace(image_size=SIZE, resize="crop", crop_fraction=SIZE / RESIZED),
        augmentation=crop,
        optimizer=Optimizer(name="sgd", learning_rate=learning_rate, moment_dtype="bfloat16", clip_norm=1.0),
        schedule=Schedule(warmup_steps=warmup),
        head="new",
        steps=steps,
        batch_size=512,
        compute_dtype="bfloat16",
        threads=16,
        evaluate_every=max(steps // 20, 100),
        save_every=max(steps // 20, 100),
    )
