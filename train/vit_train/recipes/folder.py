"""Your own images in class folders: `vit finetune folder --init CHECKPOINT --data.name ./photos`.

Values that no option sets are fitted to the training images (vit_train.fitting): the classes; for small sets the batch,
the steps and the warm-up; for small images, when pretraining, the image and patch size. Fine-tuning keeps the
checkpoint's resolution unless --image-size is given.
"""

from vit_core import CheckpointConfig, variant
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig

MOST_EPOCHS = {"pretrain": 300, "finetune": 50}
"""A run is not longer than this unless --steps or --epochs is given: so a small set gets fewer steps."""


def pretrain() -> TrainConfig:
    """From new weights; works best with tens of thousands of images or more."""
    return TrainConfig(
        model=variant("Ti/16", image_size=224, num_classes=2, pooling="gap", class_token=False, stochastic_depth=0.1),
        data=Data(name="./images"),
        augmentation=Augmentation(crop_area=(0.2, 1.0), flip=0.5, mixup=0.2, cutmix=1.0),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=Schedule(warmup_steps=500),
        label_smoothing=0.1,
        steps=20_000,
        batch_size=128,
        ema=0.999,
        ema_warmup=True,  # with a folder of hundreds of images a run may be short
        evaluate_every=1000,
        save_every=500,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    return TrainConfig(
        model=init.model.replace(stochastic_depth=0.1),
        data=Data(name="./images"),
        preprocessing=init.preprocessing,
        augmentation=Augmentation(crop_area=(0.4, 1.0), flip=0.5),
        optimizer=Optimizer(learning_rate=3e-4, weight_decay=0.05, layer_decay=0.75, clip_norm=1.0),
        schedule=Schedule(warmup_steps=50),
        label_smoothing=0.1,
        steps=1000,
        batch_size=32,
        evaluate_every=200,
        save_every=200,
    )
