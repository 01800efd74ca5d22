"""What a run with adapters trains, and what is refused."""

from pathlib import Path

import pytest

from vit_core.errors import InputError
from vit_core.lora import Lora
from vit_train.config import TrainConfig
from vit_train.stages import Launch, pretrain
from vit_train.tests.small_run import CONFIG

ADAPTED = CONFIG.replace(lora=Lora(rank=2))


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
