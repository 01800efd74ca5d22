"""Parameters that a run with adapters trains, and refused configs."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax.lora
import vit_torch.lora
from vit_core.errors import InputError
from vit_core.lora import Lora, adapter_rows
from vit_train.config import TrainConfig
from vit_train.config.distillation import Distillation
from vit_train.stages import Launch, pretrain
from vit_train.tests.small_run import CONFIG

ADAPTED, MODEL = CONFIG.replace(lora=Lora(rank=2)), CONFIG.model


def frozen(*patterns: str) -> TrainConfig:
    return ADAPTED.replace(optimizer=ADAPTED.optimizer.replace(frozen=patterns, layer_decay=0.5))


def test_adapters_and_heads_are_trained_at_their_depths_rates() -> None:
    factors = frozen("blocks.0.*").factors()
    matrices = {f"blocks.1.attn.{layer}.lora_{side}.weight" for layer in ("qkv", "proj") for side in "AB"}
    assert factors == dict.fromkeys(matrices, 0.5) | {"head.weight": 1.0, "head.bias": 1.0}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer.frozen: \*.lora_\*, head.\* leaves no adapter and no head"):
        frozen("*.lora_*", "head.*")
    with pytest.raises(InputError, match="use vit finetune RECIPE --init CHECKPOINT"):
        pretrain(ADAPTED, tmp_path / "run", Launch("torch"))
    assert not (tmp_path / "run").exists()


def test_a_model_with_adapters_is_not_saved_without_them(tmp_path: Path) -> None:
    values = {name: np.zeros(row.shape, np.float32) for name, row in adapter_rows(MODEL, ADAPTED.lora).items()}
    in_torch = vit_torch.from_seed(MODEL, 0)
    vit_torch.lora.attach(in_torch, ADAPTED.lora, values)
    in_jax = vit_jax.from_seed(MODEL, 0)
    vit_jax.lora.attach(in_jax, ADAPTED.lora, lambda stack: jnp.zeros(stack.jax_shape))
    for twin, model in ((vit_torch, in_torch), (vit_jax, in_jax)):
        with pytest.raises(InputError, match="the model has adapters, which are no part of its weights"):
            twin.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_features_do_not_train_a_head() -> None:
    model = MODEL.replace(pooling="cls", class_token=True, distillation="head")
    with pytest.raises(InputError, match="does not train the distillation token's head"):
        CONFIG.replace(model=model, distillation=Distillation(teacher="t", kind="features"))
