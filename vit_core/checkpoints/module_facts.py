"""What a pickled torch.nn.Module states of its model: a file of `torch.save(model)` has the classes and the attributes
of all modules beside their arrays.
"""

import re
from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.formats.activation_names import activation_named

OF_A_LAYER = re.compile(r"(?!.*(?:pool|decoder|stem|backbone|head|rel_pos)[^.]*\.)(?:.*\.)?\w*\d\.(?:.*\.)?")
"""Names of modules in the layers of an encoder ("blocks.0.attn."); a pooling, a stem and the network of
relative positions have settings of their own."""
_NAMES = {
    "num_heads": ("num_heads", "num_attention_heads", "n_heads", "heads"),
    "norm_eps": ("eps", "variance_epsilon"),
}
"""Setting of every layer, under the name that training scripts use -> the names of the attribute."""
_OF_THE_MODEL = ("global_pool", "pool", "pool_include_prefix", "pool_type", "final_ln_after_pool", "config")
_SIZES = ("img_size", "image_size", "input_resolution", "image_resolution")
_BLOCKS = {"Block": "before", "ResPostBlock": "after", "EvaBlock": "before", "EvaBlockPostNorm": "after"}
"""Class of timm's blocks -> whether their norms are before or after the branches."""
_NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("torch.nn.modules.activation.", "timm.layers.activations", "transformers.activations.")
NO_ACTIVATIONS = ("Softmax", "MultiheadAttention", "NonDynamicallyQuantizableLinear", "Identity")


def module_facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model, under the names that training scripts use: `{"num_heads": 3, "norm_eps": 1e-06, ...}`.

    attributes: the values of its modules' attributes, and their classes under "class", by the names of the modules
    within the model ("blocks.0.attn.num_heads"). A setting in which layers differ is left out.
    """
    found = settings_of_layers(attributes)
    facts = {name: values[0] for name, values in found.items() if values and all(one == values[0] for one in values)}
    if any(value is True and name.endswith(".gate_last") for name, value in attributes.items()):
        facts["act_layer"] = "the activation of the second half"  # in timm's GluMlp; ours is that of the first half
    return facts | {name: attributes[name] for name in _OF_THE_MODEL if name in attributes}


def settings_of_layers(attributes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Setting -> its values in all layers, and those of the image size anywhere; empty lists for what is not there."""
    found: dict[str, list[Any]] = {name: [] for name in (*_NAMES, "act_layer", "norm_layer", "img_size", "branch_norm")}
    for name, value in attributes.items():
        module, last = name[: name.rfind(".") + 1], name.rpartition(".")[2]
        if last in _SIZES and not OF_A_LAYER.fullmatch(module):
            found["img_size"].append(value)
        if not OF_A_LAYER.fullmatch(module):
            continue
        for setting, names in _NAMES.items():
            found[setting] += [value] if last in names else []
        if last == "class" and (activation := _activation(str(value), attributes.get(f"{module}approximate"))):
            found["act_layer"].append(activation)
        if last == "class" and (kind := str(value).rpartition(".")[2]) in _BLOCKS:
            found["branch_norm"].append(_BLOCKS[kind])
        if last == "class" and str(value).lower().endswith(_NORMS):
            found["norm_layer"].append(str(value).rpartition(".")[2])
    return found


def _activation(kind: str, approximate: object) -> str | None:
    """The name of an activation's class; None for another class."""
    name = kind.rpartition(".")[2]
    known = kind.startswith(ACTIVATIONS) or name == "QuickGELU"
    if not known or name.startswith(NO_ACTIVATIONS):
        return None
    return "gelu_tanh" if approximate == "tanh" else activation_named(name)
