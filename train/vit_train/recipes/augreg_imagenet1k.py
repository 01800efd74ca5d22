"""B/16 on ImageNet-1k for 300 epochs, after "How to train your ViT?" (arXiv:2106.10270, section 3 and figure 4).

Augmentation is the paper's "medium2" (RandAugment of 2 operations at magnitude 15, Mixup 0.5), with the loss, the bias
of the head (-6.9) and the representation layer of big_vision's configs/vit_i1k.py, and the paper's stochastic depth of
0.1. The paper has no table of these runs: figure 4 shows them, and its released index of checkpoints lists them.

Not reproduced: the paper's dropout of 0.1, which it uses together with stochastic depth (its masks, drawn on the host,
would take hundreds of GiB). Mixup draws a weight for each pair of images, not for the whole batch.
"""

from vit_train.config import Augmentation, TrainConfig
from vit_train.recipes import augreg_imagenet21k
from vit_train.recipes._imagenet import IMAGENET_1K_99, TRAIN_1K_99, rand_augment_of_big_vision, steps_of


def pretrain() -> TrainConfig:
    larger = augreg_imagenet21k.pretrain()
    return larger.replace(
        model=larger.model.replace(num_classes=1000, representation=768, head_bias_init=-6.9, stochastic_depth=0.1),
        data=IMAGENET_1K_99,
        augmentation=Augmentation(
            crop_area=(0.05, 1.0), flip=0.5, rand_augment=rand_augment_of_big_vision(2, 15.0), mixup=0.5
        ),
        steps=steps_of(300, TRAIN_1K_99, larger.batch_size),
    )
