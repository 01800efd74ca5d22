"""S/16 on ImageNet-1k for 90 epochs, after "Better plain ViT baselines for ImageNet-1k" (arXiv:2205.01580).

The paper's has RandAugment (level 10), which this project lacks; its ablation (table 1) measures each part.
Prepare the images with `vit prepare`, or name a folder with train and val.
"""

from vit_core import CheckpointConfig, variant
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig


def pretrain() -> TrainConfig:
    model = variant(
        "S/16",
        image_size=224,
        num_classes=1000,
        pooling="gap",
        class_token=False,
        position_embedding="sincos2d_big_vision",
    )
    return TrainConfig(
        model=model,
        data=Data(name="imagenet2012", train_split="train[:99%]", eval_split="validation"),
        preprocessing=Preprocessing(image_size=224, crop_fraction=224 / 256),
        augmentation=Augmentation(crop_area=(0.05, 1.0), flip=0.5, mixup=0.2),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=1e-4, decay="independent", clip_norm=1.0),
        schedule=Schedule(warmup_steps=10_000),
        steps=111_500,  # 90 epochs
        batch_size=1024,
        compute_dtype="bfloat16",
        threads=16,
        log_every=50,
        evaluate_every=5000,
        save_every=1000,
    )


def finetune(init: CheckpointConfig) -> TrainConfig:
    """At 384 pixels, as the ViT paper fine-tunes (arXiv:2010.11929, appendix B.1.1)."""
    return TrainConfig(
        model=init.model.replace(image_size=384),
        data=Data(name="imagenet2012", train_split="train[:99%]", eval_split="validation"),
        preprocessing=init.preprocessing,
        augmentation=Augmentation(crop_area=(0.05, 1.0), flip=0.5),
        optimizer=Optimizer(name="sgd", learning_rate=0.03, clip_norm=1.0),
        schedule=Schedule(warmup_steps=500),
        steps=20_000,
        batch_size=512,
        compute_dtype="bfloat16",
        threads=16,
        log_every=50,
        evaluate_every=5000,
        save_every=1000,
    )
