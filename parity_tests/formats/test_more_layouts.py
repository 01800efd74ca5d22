"""More layouts of public reports: a head after a Sequential, buffers that normalize, one shard, pruned layers."""

import json
import zipfile
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import prune

from parity_tests.formats.foreign import images, largest_difference, nchw, opened, other_notes, randomized, save
from vit_core import open_checkpoint, parity
from vit_core.errors import InputError

TINY: dict[str, Any] = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
SIZES: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}


def backbone() -> Any:
    return VisionTransformer(**TINY, num_classes=0)


def classifier() -> Any:
    return randomized(VisionTransformer(**TINY, num_classes=5))


def assert_same(path: Path, model: Any, **fields: Any) -> None:
    found = opened(path, **fields)
    with torch.no_grad():
        expected = model(nchw(images(found.config.model)))
    assert largest_difference(found, expected) <= parity.FLOAT64_BOUND


class Normalize(nn.Module):
    """As those who attack models put it before them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))


def test_a_sequential_of_a_model_and_its_head(tmp_path: Path) -> None:
    model = randomized(nn.Sequential(backbone(), nn.Linear(24, 5)))
    assert_same(save(tmp_path / "file.pth", model.state_dict()), model, heads=3)


def test_a_sequential_inside_of_lightning(tmp_path: Path) -> None:
    model = randomized(nn.Sequential(backbone(), nn.Dropout(), nn.Linear(24, 5)))
    state = {f"model.{name}": x for name, x in model.state_dict().items()}
    assert_same(save(tmp_path / "file.pth", state), model, heads=3)


LONGER: dict[str, Any] = {
    "two layers": lambda: nn.Sequential(backbone(), nn.Linear(24, 128), nn.ReLU(), nn.Linear(128, 5)),
    "a norm": lambda: nn.Sequential(backbone(), nn.LayerNorm(24), nn.Linear(24, 5)),
    "two heads": lambda: nn.ModuleList([backbone(), nn.Linear(24, 5), nn.Linear(24, 7)]),
    "no Sequential": lambda: nn.ModuleDict({"0": nn.Linear(24, 5), "model": backbone()}),
}


@pytest.mark.parametrize("case", LONGER)
def test_one_layer_of_several_is_no_head(case: str, tmp_path: Path) -> None:
    found = opened(save(tmp_path / "file.pth", LONGER[case]().state_dict()), heads=3)
    assert found.config.model.num_classes == 0
    assert found.notes[-1].startswith("left out: ")


BEFORE_A_HEAD: dict[str, Any] = {
    "a projection": lambda: nn.Sequential(nn.Dropout(), nn.Linear(24, 24), nn.ReLU()),
    "a norm": lambda: nn.LayerNorm(24),
    "a norm without weights": lambda: nn.BatchNorm1d(24, affine=False),
}


@pytest.mark.parametrize("case", BEFORE_A_HEAD)
def test_a_module_that_may_stand_before_a_head(case: str, tmp_path: Path) -> None:
    """The head alone would compute other outputs than the model that the file is of."""
    model = nn.ModuleDict({"backbone": backbone(), "neck": BEFORE_A_HEAD[case](), "head": nn.Linear(24, 5)})
    found = opened(save(tmp_path / "file.pth", model.state_dict()), heads=3)
    assert found.config.model.num_classes == 0
    assert any(note.startswith("head: 'head' is left out, because 'neck") for note in found.notes)
    kept = {name: array for name, array in model.state_dict().items() if not name.startswith("neck.")}
    assert opened(save(tmp_path / "one.pth", kept), heads=3).config.model.num_classes == 5, "as the note says"


def test_one_of_several_heads_beside_a_model_is_not_chosen(tmp_path: Path) -> None:
    heads = {"fc": nn.Linear(24, 5), "classifier": nn.Linear(24, 7)}
    model: Any = randomized(nn.ModuleDict({"backbone": backbone(), **heads}))
    found = opened(save(tmp_path / "file.pth", model.state_dict()), heads=3)
    assert found.config.model.num_classes == 0
    left_out = "head: left out, because it may be any of fc, classifier"
    assert f"{left_out}; --set num_classes=N uses the one with N classes" in found.notes
    assert_same(tmp_path / "file.pth", lambda x: model["classifier"](model["backbone"](x)), heads=3, num_classes=7)


def test_modules_that_stand_aside_from_a_head(tmp_path: Path) -> None:
    """Those of training, by words in their names, and a matrix with other axes than any array of the model."""
    aside = {
        "teacher_proj": nn.Linear(24, 24),
        "lossFn": nn.Linear(24, 5),
        "momentum": nn.ModuleDict({"fc": nn.Linear(24, 5)}),
    }
    parts = {**aside, "aux": nn.Linear(7, 11, bias=False), "backbone": backbone(), "fc": nn.Linear(24, 5)}
    model = randomized(nn.ModuleDict(parts))
    counts = {"train_acc.total": torch.tensor(5), "val_metrics.sum": torch.zeros(24), "class_counts": torch.arange(5)}
    path = save(tmp_path / "file.pth", {**model.state_dict(), **counts})
    assert_same(path, lambda x: model["fc"](model["backbone"](x)), heads=3)  # type: ignore[index]


def test_buffers_that_normalize_are_the_preprocessing(tmp_path: Path) -> None:
    model = classifier()
    found = opened(save(tmp_path / "file.pth", nn.Sequential(Normalize(), model).state_dict()), heads=3)
    made = found.config.preprocessing
    assert made is not None
    np.testing.assert_allclose((made.mean, made.std), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), rtol=2.0**-24)  # float32
    assert not [note for note in other_notes(found) if note.startswith("left out")]


def test_a_head_beside_transformers_clip(tmp_path: Path) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, image_size=12, patch_size=4))
            self.classifier = nn.Linear(24, 5)

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.vision(x_BCHW).pooler_output)

    model = randomized(Classifier())
    assert_same(save(tmp_path / "file.pth", model.state_dict()), model, heads=3)


def test_a_tree_of_orbax_with_pytorchs_names(tmp_path: Path) -> None:
    """As ports with timm's names save them, with an optimizer's statistics of the same names."""
    model, tree = classifier(), dict[str, Any]()
    for name, x in model.state_dict().items():
        *parts, leaf = name.split(".")
        level = tree
        for part in parts:
            level = level.setdefault(part, {})
        level[leaf] = x.numpy()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", {"params": tree, "opt_state": {"mu": tree}})
    assert_same(tmp_path / "tree", model, heads=3)


def sharded(folder: Path) -> Any:
    kind: Any = hf.ViTForImageClassification
    model = randomized(kind(hf.ViTConfig(**SIZES, image_size=12, patch_size=4, hidden_act="gelu_new"))).float()
    model.save_pretrained(folder, max_shard_size="5KB")
    return model.double()


def test_an_index_alone_has_the_config_beside_it(tmp_path: Path) -> None:
    model = sharded(tmp_path)
    assert_same(tmp_path / "model.safetensors.index.json", lambda x: model(x).logits)


def test_one_shard_is_named_as_that(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = min(tmp_path.glob("model-00001-of-*.safetensors"))
    count = len(set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values()))
    with pytest.raises(
        InputError, match=f"one of {count} shards, as the name suggests, give the folder that contains them"
    ):
        open_checkpoint(shard)


def test_a_shard_with_a_part_of_a_model(tmp_path: Path) -> None:
    state = dict(list(classifier().state_dict().items())[:-4])
    with pytest.raises(
        InputError, match=r"missing norm.weight .* one of 2 shards, as the name suggests, give the folder"
    ):
        opened(save(tmp_path / "model-00001-of-00002.pth", state), heads=3)


def test_a_whole_model_in_a_file_called_like_a_shard(tmp_path: Path) -> None:
    """An epoch's, or a tower that one shard of a larger model holds."""
    model = classifier()
    assert_same(save(tmp_path / "epoch-00010-of-00100.pth", model.state_dict()), model, heads=3)


def test_the_second_model_of_accelerate_is_named(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(classifier().float(), backbone().float())
    accelerator.save_state(str(tmp_path / "state"))
    found = opened(tmp_path / "state", heads=3)
    assert (
        "read model.safetensors; to open another model of the folder, give its file: model_1.safetensors" in found.notes
    )


@pytest.mark.parametrize("names", [("weight_scale",), ("weight._data", "weight._scale"), ("weight_scale_inv",)])
def test_quantized_weights_are_named(names: tuple[str, ...], tmp_path: Path) -> None:
    """As of float8 with scales, and of torchao and quanto."""
    state = classifier().state_dict()
    for name in names:
        state[f"blocks.0.attn.proj.{name}"] = torch.ones(1)
    with pytest.raises(InputError, match="quantized weights; save the model before quantization"):
        opened(save(tmp_path / "file.pth", state), heads=3)


@pytest.mark.parametrize("config", [{}, {"model_type": "vit", "quantization_config": {"load_in_4bit": True}}])
def test_weights_in_4_bits_are_named(config: dict[str, Any], tmp_path: Path) -> None:
    """bitsandbytes packs two values into a byte, with the constants beside them."""
    state = classifier().state_dict()
    for layer in ("attn.qkv", "attn.proj"):
        weight = f"blocks.0.{layer}.weight"
        constants = {"absmax": torch.ones(8), "quant_map": torch.ones(16)}
        constants["quant_state.bitsandbytes__nf4"] = torch.zeros(90, dtype=torch.uint8)
        state |= {weight: torch.zeros(state[weight].numel() // 2, 1, dtype=torch.uint8)}
        state |= {f"{weight}.{name}": x for name, x in constants.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / "model.safetensors", state)
    with pytest.raises(InputError, match=r"blocks.0.attn.proj.weight.absmax belongs to weights in 4 bits .*dequantize"):
        opened(tmp_path, heads=3)


def test_a_part_of_fsdp_is_named(tmp_path: Path) -> None:
    """As each process of DINOv2's training writes its part."""
    state = {"student.backbone._fsdp_wrapped_module._flat_param": torch.ones(99)}
    with pytest.raises(InputError, match=r"as of one process's part of FSDP's flat parameters, .*FULL_STATE_DICT"):
        opened(save(tmp_path / "model_0000999.rank_0.pth", {"model": state}))


@pytest.mark.parametrize("change", ["pruned", "weight_norm", "spectral_norm"])
def test_layers_with_a_computed_weight_are_named(change: str, tmp_path: Path) -> None:
    model = classifier()
    layer = model.blocks[0].mlp.fc1
    if change == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif change == "weight_norm":
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.spectral_norm(layer)
    with pytest.raises(InputError, match=r"a layer whose weight is computed from other arrays .* make it permanent"):
        opened(save(tmp_path / "file.pth", model.state_dict()), heads=3)


@pytest.mark.parametrize("head", ["linear", "lin_cls", "last_layer"])
def test_a_head_with_a_computed_weight_is_left_out(head: str, tmp_path: Path) -> None:
    """The last layer of DINO's head, and of those after it, has weight normalization."""
    model = randomized(backbone())
    state = model.state_dict() | {
        f"{head}.parametrizations.weight.original{i}": torch.ones(5, (1, 24)[i]) for i in (0, 1)
    }
    path = save(tmp_path / "file.pth", state)
    assert_same(path, model, heads=3, num_classes=0)
    with pytest.raises(InputError, match="use --set num_classes=0 to leave this head out"):
        opened(path, heads=3)


@pytest.mark.parametrize("name", ["lora_A", "linear_a_q.weight"])
def test_adapters_within_a_model_are_named(name: str, tmp_path: Path) -> None:
    """loralib's, and those of projects that put LoRA into timm's qkv."""
    state = classifier().state_dict() | {f"blocks.0.attn.qkv.{name}": torch.ones(2, 24)}
    with pytest.raises(InputError, match="LoRA adapters; merge them into the model and save that"):
        opened(save(tmp_path / "file.pth", state), heads=3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_of_another_encoding(encoding: str, tmp_path: Path) -> None:
    """As editors on Windows save it."""
    model = sharded(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, encoding=encoding)
    assert_same(tmp_path, lambda x: model(x).logits)


def test_the_unpacked_contents_of_a_pth_file(tmp_path: Path) -> None:
    save(tmp_path / "file.pth", classifier().state_dict())
    with zipfile.ZipFile(tmp_path / "file.pth") as archive:
        archive.extractall(tmp_path)
    with pytest.raises(InputError, match=r"the unpacked contents of a \.pth file; give that file"):
        open_checkpoint(tmp_path / "file")


def test_a_file_of_joblib(tmp_path: Path) -> None:
    joblib.dump({name: x.numpy() for name, x in classifier().state_dict().items()}, tmp_path / "file.pkl")
    with pytest.raises(InputError, match=r"a joblib file, .*; load it with joblib"):
        open_checkpoint(tmp_path / "file.pkl")


def test_a_folder_of_tensorflows_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(InputError, match=r"a folder with weights of Keras or TensorFlow \(tf_model.h5\), which cannot"):
        open_checkpoint(tmp_path)


def test_a_folder_beside_a_file_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    (tmp_path / "pytorch").mkdir()
    save(tmp_path / "pytorch" / "pytorch_model.bin", classifier().state_dict())
    with pytest.raises(InputError, match="give one of the folders in it: pytorch"):
        open_checkpoint(tmp_path)
