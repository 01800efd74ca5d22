"""PaddleClas's ViT and DeiT: timm's names in a pickle of NumPy arrays, and every Linear's weight transposed.

Paddle is not installed here: the file is written as `paddle.save` does (a dictionary of arrays, pickled), and the model
is timm's, from which PaddleClas has its names.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.formats.test_found_in_trees import HEADS, assert_is, vit
from vit_core.checkpoints import open_checkpoint
from vit_core.errors import InputError

NOTE = "weights of layers: transposed, because Paddle stores them as [inputs, outputs]"


def pdparams(folder: Path, model: Any, protocol: int = 4) -> Path:
    """A Linear has [inputs, outputs] in Paddle; a convolution is as in PyTorch."""
    state = {name: x.numpy().T if x.ndim == 2 else x.numpy() for name, x in model.state_dict().items()}
    names = {name: f"linear_{i}.w_0" for i, name in enumerate(state)}
    path = folder / "ViT_base_patch16_224_pretrained.pdparams"
    path.write_bytes(pickle.dumps({**state, "StructuredToParameterName@@": names}, protocol))
    return path


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "as many classes as features": {"num_classes": 24},
    "an MLP of the width": {"mlp_ratio": 1.0},
    "no head": {"num_classes": 0},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_file(name: str, protocol: int, tmp_path: Path) -> None:
    model = vit(**MODELS[name])
    found = open_checkpoint(pdparams(tmp_path, model, protocol), fields=HEADS)
    assert found.format == "timm"
    assert NOTE in found.notes
    assert_is(found, model)


def test_distilled_deit(tmp_path: Path) -> None:
    """Its second head too."""
    model = vit(seed=1)
    state = {name: x.numpy().T if x.ndim == 2 else x.numpy() for name, x in model.state_dict().items()}
    state |= {"dist_token": np.ones((1, 1, 24)), "pos_embed": np.ones((1, 11, 24))}
    state |= {"head_dist.weight": np.ones((24, 5)), "head_dist.bias": np.ones(5)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(state))
    model_config = open_checkpoint(tmp_path / "a.pdparams", fields=HEADS).config.model
    assert (model_config.distillation, model_config.num_classes) == ("head", 5)


def test_half_transposed_arrays_are_refused(tmp_path: Path) -> None:
    state = {name: x.numpy() for name, x in vit().state_dict().items()}
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].T
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match="its arrays do not form one model") as error:
        open_checkpoint(tmp_path / "a.pkl", fields=HEADS)
    assert "\n" not in str(error.value)
