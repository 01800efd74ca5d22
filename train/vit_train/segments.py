"""Segments of a run: the fields that were changed when it was resumed, and the first step of each change."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_core.errors import InputError
from vit_core.schema import NonNegative, Schema
from vit_train.config import Continued, TrainConfig, field_value, with_fields
from vit_train.config.changeable import CHANGEABLE_IN_SEGMENTS


class Segment(Schema):
    """A change that was made when a run was resumed; it applies from its step to that of the next segment, or to the
    end."""

    step: NonNegative
    """Number of updates before the segment."""
    examples: NonNegative
    """Number of examples used before the segment."""
    fields: dict[str, Any]
    """Dotted names of the changed fields of the config -> their new values."""


def config_at(begun: TrainConfig, segments: Sequence[Segment], step: int) -> TrainConfig:
    """The config of update number `step` (from 0) of a run that began with the config `begun`."""
    config = begun
    for segment in segments:
        if segment.step <= step:
            before = Continued(step=segment.step, examples=segment.examples, first_batch=begun.batch_size)
            config = with_fields(config, {**segment.fields, "continues": before})
    return config


def with_change(
    begun: TrainConfig, segments: Sequence[Segment], step: int, wanted: Mapping[str, Any]
) -> tuple[Segment, ...]:
    """The segments of a run that has made `step` updates and continues with other values of some fields.

    Without a number of steps, the run still ends after as many examples as it would have: another batch size changes
    the steps. Values that are already set make no segment. Raises InputError for a field that cannot change within a
    run, and if no step would be left.
    """
    for name in wanted:
        if name not in CHANGEABLE_IN_SEGMENTS:
            raise InputError(
                f"{name}: cannot change within a run; only {', '.join(sorted(CHANGEABLE_IN_SEGMENTS))} can"
            )
    now = config_at(begun, segments, step)
    wanted = {name: value for name, value in wanted.items() if value != field_value(now, name)}
    if not wanted:
        return tuple(segments)
    steps = wanted.get("steps", now.steps)
    if steps <= step:
        found = "is finished" if step == now.steps else "has gone further"
        raise InputError(
            f"steps: {steps}, but the run {found}: {step} steps are done; set --steps, all steps of the run, to more"
        )
    if "batch_size" in wanted and "steps" not in wanted:
        left = now.examples_before(now.steps) - now.examples_before(step)
        wanted = {**wanted, "steps": step - -left // wanted["batch_size"]}
    # A segment that begins at this step has not trained yet: both changes are one.
    earlier = [segment for segment in segments if segment.step < step]
    unfinished = {name: value for segment in segments if segment.step == step for name, value in segment.fields.items()}
    before = config_at(begun, earlier, step)
    changed = {name: value for name, value in {**unfinished, **wanted}.items() if value != field_value(before, name)}
    added = [Segment(step=step, examples=before.examples_before(step), fields=changed)] if changed else []
    result = (*earlier, *added)
    config_at(begun, result, step)  # InputError where the values do not fit together
    return result
