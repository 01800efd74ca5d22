"""Any model, fine-tuned by low-rank adapters beside its attention: LoRA (arXiv:2106.09685, section 4.1, table 9).

Optimizer, schedule, rank and alpha are those of the column RoBERTa base of table 9: AdamW, a linear schedule with 6 %
of warm-up, rank 8 and alpha 8 for queries and values (the authors' code, microsoft/LoRA, has alpha 16 and weight decay
0.1 in examples/NLU/roberta_base_mnli.sh). Here queries, keys and values are one matrix, which has one adapter. The head
is new and trained whole. The paper's models read language: there is no table of these runs for images.
"""

from vit_core import CheckpointConfig
from vit_core.lora import Lora
from vit_train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig

STEPS = 2000
MOST_EPOCHS = {"finetune": 50}


def finetune(init: CheckpointConfig) -> TrainConfig:
    return TrainConfig(
        model=init.model.replace(dropout=0.0, stochastic_depth=0.0),
        data=Data(name="./images"),
        preprocessing=init.preprocessing,
        augmentation=Augmentation(crop_area=(0.4, 1.0), flip=0.5),
        lora=Lora(rank=8, alpha=8.0, targets=("qkv",)),
        optimizer=Optimizer(learning_rate=5e-4),
        schedule=Schedule(name="linear", warmup_steps=round(0.06 * STEPS)),
        head="new",
        steps=STEPS,
        batch_size=32,
        evaluate_every=200,
        save_every=200,
    )
