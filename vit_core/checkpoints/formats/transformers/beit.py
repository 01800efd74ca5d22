"""The config of transformers' BEiT, Data2VecVision and InternVL's vision tower.

The three have the same arrays except for the names in attention: LayerScale as `lambda_1` and `lambda_2`; a table of
positions, a relative bias (BEiT's, of each block or shared by all) or both; and a norm after the mean of the patches.
Source: huggingface/transformers, src/transformers/models/{beit,data2vec,internvl}.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.allowed_values import ANY, Values
from vit_core.checkpoints.formats.interface import square_grid
from vit_core.checkpoints.formats.transformers.config_json import Tower
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.relative_positions import square_of, table_rows

_TABLE = "relative_position_bias_table"
_MASKED_MODELING_HEAD = "lm_head.weight"


def with_norm_of_masked_modeling(arrays: LazyArrays, prefix: str) -> LazyArrays:
    """The arrays with the tower's prefix for the final norm, which is outside the tower in
    BeitForMaskedImageModeling."""
    if _MASKED_MODELING_HEAD not in arrays or f"{prefix}embeddings.cls_token" not in arrays:
        return arrays
    entries: dict[str, LazyArray] = {}
    for name, entry in arrays.entries.items():
        entries[f"{prefix}{name}" if name.startswith("layernorm.") else name] = entry
    return LazyArrays(entries)


class BeitTower(Tower):
    """Finds the config of BEiT, Data2VecVision or InternVL's vision tower."""

    def sizes(self) -> dict[str, Any]:
        names, shapes = self.names, self.shapes
        found = super().sizes()
        query_bias, key_bias, value_bias = (name in shapes for name in names.in_block("attn.qkv.bias"))
        if query_bias != value_bias or (key_bias and not query_bias):
            self.cannot_say("a bias on some of queries, keys and values, other than on queries and values")
        if any(name.endswith(".attention.q_norm.weight") for name in shapes):
            self.cannot_say("a norm over the queries and keys of all heads together (use_qk_norm)")
        rms = names.in_block("norm1.bias")[0] not in shapes
        if rms and names.of("norm.bias") in shapes:
            self.cannot_say("RMSNorm in the blocks and LayerNorm after them")
        return {
            **found,
            "key_bias": key_bias or not query_bias,
            "norm": "rms_norm" if rms else "layer_norm",
            "layer_scale": self.layer_scale(),
            **self.relative_bias(),
        }

    def layer_scale(self) -> Any:
        if self.names.in_block("ls1.gamma")[0] not in self.shapes:
            return None
        return self.said.get("layer_scale_init_value", 0.1)

    def relative_bias(self) -> dict[str, Any]:
        shared = self.shared_table in self.shapes
        apart = not self.is_internvl and self.table_of_first_block in self.shapes
        if shared and apart:
            self.cannot_say("a shared relative bias in addition to one of each block")
        if not (shared or apart):
            return {"relative_bias": "none"}
        return {"relative_bias": "table", "relative_bias_shared": shared}

    @property
    def is_internvl(self) -> bool:
        return self.family.kind == "internvl"

    @property
    def shared_table(self) -> str:
        return self.names.shared_bias(_TABLE)

    @property
    def table_of_first_block(self) -> str:
        return self.names.in_block(f"attn.rel_pos.{_TABLE}")[0]

    def expected(self, found: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        bias, shared = found["relative_bias"] == "table", found.get("relative_bias_shared", False)
        pooler, norm = self.norms()
        return {
            **super().expected(found),
            "qkv_bias": (),
            "attention_bias": (found["qkv_bias"],) if self.is_internvl else (),
            "use_qk_norm": (False,) if self.is_internvl else (),
            "norm_type": (found["norm"],) if self.is_internvl else (),
            "use_relative_position_bias": (bias and not shared,),
            "use_shared_relative_position_bias": (bias and shared,),
            "use_absolute_position_embeddings": (self.has_table,),
            "use_mean_pooling": (pooler,) if pooler or (norm and not self.of_masked_modeling) else (),
        }

    @property
    def has_table(self) -> bool:
        return self.names.of("pos_embed") in self.shapes

    @property
    def of_masked_modeling(self) -> bool:
        return _MASKED_MODELING_HEAD in self.shapes

    def norms(self) -> tuple[bool, bool]:
        """Whether there is a norm after the mean of the patches, and whether there is one before it."""
        pooler = self.names.kind == "beit" and self.names.of("fc_norm.weight") in self.shapes
        return pooler, self.names.of("norm.weight") in self.shapes

    def ends(self) -> dict[str, Any]:
        classes = self.classes().get("classifier", 0)
        pooler, norm = self.norms()
        if pooler:
            return {"pooling": "gap", "final_norm": "after_pooling", "num_classes": classes}
        if self.of_masked_modeling:
            self.left_out.append(r"^lm_head\.")
        final_norm = "before_pooling" if norm else "none"
        pooling = "cls" if norm or self.is_internvl else "gap"
        if "pooling" not in self.fields and (self.of_masked_modeling or self.is_internvl or not norm):
            why = "because the class of the file returns all tokens"
            self.assumptions.append(Assumption("pooling", pooling, why, "--set pooling=gap or cls"))
        return {"pooling": pooling, "final_norm": final_norm, "num_classes": classes}

    def positions(self) -> dict[str, Any]:
        return {
            **super().positions(),
            "position_embedding": "learned" if self.has_table else "none",
            "class_token_position": self.has_table,
        }

    def heads(self, found: Mapping[str, Any]) -> Any:
        if found["relative_bias"] != "table":
            return super().heads(found)
        table = self.shared_table if found["relative_bias_shared"] else self.table_of_first_block
        heads = self.shape(table, 2)[1]
        if (said := self.said.get("num_attention_heads", heads)) != heads:
            self.disagree("num_attention_heads", said, f"{heads} (columns of the relative bias)")
        return heads

    def image_size(self, found: Mapping[str, Any]) -> tuple[int, int]:
        if self.has_table:
            return super().image_size(found)
        patch, said = found["patch_size"], self.said_image_size
        if "image_size" in self.fields:
            return patch  # replaced by the user's value
        rows = 0
        if found["relative_bias"] == "table":
            rows = self.shape(self.shared_table if found["relative_bias_shared"] else self.table_of_first_block, 2)[0]
        if said is None:
            if not (grid := square_of(rows - 3)):
                raise InputError(f"{self.where}: no array shows the image size; use --set image_size=HEIGHTxWIDTH")
            size = grid[0] * patch[0], grid[1] * patch[1]
            self.assumptions.append(square_grid(size, grid))
            return size
        whole = self.whole_patches(said, patch)
        if rows and table_rows((whole[0] // patch[0], whole[1] // patch[1]), class_token=True) != rows:
            self.disagree("image_size", self.said["image_size"], f"{rows} rows of relative bias for patches of {patch}")
        return whole


def allowed_values(model: ViTConfig) -> dict[str, Values]:
    """Field -> allowed values, for the fields in which BEiT differs from the plain ViT."""
    by_mean = model.pooling == "gap"
    return {
        "position_embedding": ("none", "learned"),
        "class_token_position": (model.position_embedding == "learned",),
        "relative_bias": ("table",),
        "relative_bias_shared": ANY,
        "key_bias": (False,),
        "layer_scale": ANY,
        "pooling": ("gap",) if by_mean else ("cls",),
        "final_norm": ("after_pooling",) if by_mean else ("before_pooling",),
    }


def config_fields(model: ViTConfig) -> dict[str, Any]:
    """The fields of config.json for this family, in addition to those of every tower."""
    return {
        "use_relative_position_bias": not model.relative_bias_shared,
        "use_shared_relative_position_bias": model.relative_bias_shared,
        "use_absolute_position_embeddings": model.position_embedding == "learned",
        "use_mean_pooling": model.pooling == "gap",
        "use_mask_token": False,
        "layer_scale_init_value": model.layer_scale or 0.0,
    }
