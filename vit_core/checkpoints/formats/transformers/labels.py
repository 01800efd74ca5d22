"""The names of classes in transformers' config.json."""

from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.transformers.config_json import shown
from vit_core.config import ViTConfig
from vit_core.errors import abbreviate


def labels_of(source: Source, model: ViTConfig) -> tuple[tuple[str, ...] | None, list[str]]:
    """The names in id2label, and notes. None, without a note, if there is no id2label or it has transformers' default
    names ("LABEL_0"); None with a note if it does not have one name for each class."""
    said = source.config.get("id2label")
    if said is None or not model.num_classes:
        return None, []
    if not isinstance(said, dict):
        return None, [f"left out: labels, because id2label is {shown(said)}"]
    names = {str(key): name for key, name in said.items()}
    missing = [str(i) for i in range(model.num_classes) if not isinstance(names.get(str(i)), str)]
    if missing:
        return None, [f"left out: labels, because id2label has no name for class {abbreviate(missing)}"]
    if len(names) != model.num_classes:
        return None, [f"left out: labels, because id2label has {len(names)} names for {model.num_classes} classes"]
    ordered = tuple(names[str(i)] for i in range(model.num_classes))
    return (None if ordered == tuple(f"LABEL_{i}" for i in range(model.num_classes)) else ordered), []
