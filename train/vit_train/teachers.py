"""The teacher of a run with distillation: opened from any format, and refused if the student cannot learn from it."""

from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError, abbreviate
from vit_core.labels import kept_outputs
from vit_train.config import TrainConfig


def open_teacher(config: TrainConfig, labels: tuple[str, ...] | None) -> tuple[Checkpoint | None, list[str]]:
    """The teacher of a run, with its outputs in the order of the run's labels, and a message about it for the user;
    None for a run without one. labels: None if the run is only planned; the outputs are then new.

    Raises InputError for a teacher that takes images of another size, does not know all classes, or has features of
    another width than the student.
    """
    address = config.distillation.teacher
    if address is None:
        return None, []
    try:
        teacher = open_checkpoint(address)
    except InputError as error:
        raise InputError(f"distillation.teacher: {error}") from None
    notes = [f"teacher {address}: {note}" for note in teacher.notes]
    ours, theirs = config.model, teacher.config.model
    for name in ("image_size", "channels"):
        if getattr(ours, name) != getattr(theirs, name):
            how = "; vit convert TEACHER DIR --image-size resamples its positions" if name == "image_size" else ""
            found = f"the teacher takes {name} {getattr(theirs, name)}, the student {getattr(ours, name)}"
            raise InputError(f"distillation.teacher: {address}: {found}{how}")
    if teacher.config.preprocessing is None:
        # As its student's: nothing else is known.
        teacher = teacher.with_config(teacher.config.replace(preprocessing=config.preprocessing))
        notes.append(f"teacher {address}: does not record how its images were made; taken as the run's own")
    elif teacher.config.preparation()[0].bit_depth != config.preprocessing.bit_depth:
        raise InputError(f"distillation.teacher: {address}: its images have another bit_depth than the run's")
    if config.distillation.kind == "features":
        if theirs.features != ours.features:
            raise InputError(
                f"distillation.kind: features of the teacher {address} have {theirs.features} values and the student's "
                f"{ours.features}; use 'logits' or 'hard', or a teacher of this width"
            )
        return teacher, notes
    return _in_order(teacher, ours, labels, notes), notes


def _in_order(teacher: Checkpoint, student: ViTConfig, labels: tuple[str, ...] | None, notes: list[str]) -> Checkpoint:
    """The teacher with its outputs in the order of the run's classes."""
    theirs, address = teacher.config.labels, teacher.origin
    if labels is None:
        return teacher.with_head(student.num_classes)
    if theirs is None:
        if teacher.config.model.num_classes != student.num_classes:
            raise InputError(
                f"distillation.teacher: {address} has {teacher.config.model.num_classes} outputs for "
                f"{student.num_classes} classes; fine-tune it on these data first, or use distillation.kind features"
            )
        notes.append(f"teacher {address}: has no class names, so its output i is taken as class i")
        return teacher
    if theirs == labels:
        return teacher
    order = kept_outputs(theirs, labels)
    if unknown := [label for label, output in zip(labels, order, strict=True) if output is None]:
        raise InputError(
            f"distillation.teacher: {address} does not know the classes {abbreviate(unknown)}; fine-tune it on these "
            "data first, or use distillation.kind features"
        )
    notes.append(f"teacher {address}: its outputs are put in the order of the data set's classes, by name")
    return teacher.with_outputs(order)
