"""Prints a recipe for `vit explain`."""

from collections.abc import Iterator
from dataclasses import dataclass

from vit_cli.console import say, table
from vit_cli.field_options import value_text
from vit_core.parameters import Parameter, spans
from vit_train.config import TrainConfig, changed_fields, flatten

ALWAYS_SHOWN = ("optimizer.name", "schedule.name", "loss", "seed")
"""Fields that readers of a recipe look for, whether or not they have their default values."""


def print_recipe(title: str, config: TrainConfig, examples: int | None = None, every_field: bool = False) -> None:
    """Prints the resolved config, the schedule, the parameter groups, tokens and FLOPs.

    examples: number of training examples, from which epochs are computed; None if it is not known.
    every_field: print also the fields that have their default values.
    """
    config = config.replace(optimizer=config.optimizer.resolved())
    fields = {name: value_text(value) for name, value in flatten(config.model_dump()).items()}
    chosen = {*changed_fields(config), *ALWAYS_SHOWN}
    shown = [name for name in fields if every_field or name in chosen]
    table(title, ("field", "value"), ((name, fields[name]) for name in shown))
    if len(shown) < len(fields):
        say(f"{len(fields) - len(shown)} other fields have their default values; --all prints them too")
    steps = sorted({0, *milestones(config), config.steps - 1})
    rates = [(step + 1, f"{config.learning_rate(step):.3e}", epochs(config, step + 1, examples)) for step in steps]
    table("schedule", ("step", "learning rate", "epochs"), rates)
    _print_groups(config)
    forward = config.forward_flops
    total = sum(forward.values())
    each = ", ".join(str(network.tokens) for network in config.networks)
    tokens = f"{f'one of {each}' if len(config.networks) > 1 else each} tokens per image"
    if config.masked is not None:
        seen = config.model.prefix_tokens + config.masked.visible(config.model)
        tokens += f", of which the encoder sees {seen}"
    say(f"{sum(row.size for row in config.table.values()):,} parameters, {tokens}")
    shares = ", ".join(f"{name} {part / total:.0%}" for name, part in forward.items())
    say(f"{total / 1e9:.3f} GFLOPs per image for the forward pass ({shares}), {3 * total / 1e9:.3f} for training")
    images = config.steps * config.batch_size
    say(f"the run: {images:,} images, {3 * total * images:.2e} FLOPs")


def _print_groups(config: TrainConfig) -> None:
    rows = (
        (
            group.where,
            "yes" if group.decay else "no",
            len(group.rows),
            f"{sum(row.size for row in group.rows):,}",
            "frozen" if group.factor is None else f"{config.optimizer.learning_rate * group.factor:.3e}",
            "frozen" if group.factor is None else f"{decay_of_a_step(config, group):.1e}",
        )
        for group in groups(config)
    )
    columns = ("parameters of", "decayed", "tensors", "values", "peak rate", "decay per step")
    table("parameter groups", columns, rows)


def milestones(config: TrainConfig) -> list[int]:
    """Steps at which the schedule is shown: the end of the warm-up, the quarters, the beginning of the cooldown."""
    quarters = [config.steps * quarter // 4 for quarter in (1, 2, 3)]
    schedule = config.schedule
    cooldown = [config.steps - schedule.cooldown_steps] if schedule.cooldown_steps else []
    return [max(schedule.warmup_steps - 1, 0), *quarters, *cooldown]


def epochs(config: TrainConfig, step: int, examples: int | None) -> str:
    """The number of epochs after `step` steps, as text."""
    return f"{step * config.batch_size / examples:.2f}" if examples else ""


@dataclass(frozen=True)
class Group:
    """Parameters with the same settings of the optimizer."""

    where: str
    factor: float | None
    """Factor of the learning rate; None: the parameters are frozen."""
    decay: bool
    rows: tuple[Parameter, ...]


def groups(config: TrainConfig) -> Iterator[Group]:
    """The parameter groups in the order of the network."""
    rows, factors = config.table, config.factors()
    alike: dict[tuple[float | None, bool], list[Parameter]] = {}
    for name, row in rows.items():
        alike.setdefault((factors.get(name), row.decay), []).append(row)
    for (factor, decay), members in alike.items():
        yield Group(place_in_network(config, members), factor, decay, tuple(members))


def place_in_network(config: TrainConfig, rows: list[Parameter]) -> str:
    """The part of the network that parameters belong to: "embeddings, blocks 0-11, head"."""
    depths = sorted({row.depth for row in rows})
    blocks = [depth - 1 for depth in depths if 0 < depth <= config.model.depth]
    names = ["embeddings"] if 0 in depths else []
    names += [f"{'blocks' if len(blocks) > 1 else 'block'} {spans(blocks).replace(',', ', ')}"] if blocks else []
    last = "head" if config.masked is None else "decoder"
    return ", ".join(names + ([last] if depths[-1] > config.model.depth else []))


def decay_of_a_step(config: TrainConfig, group: Group) -> float:
    """The fraction by which weight decay reduces a parameter in a step at the peak of the schedule (coupled: before
    momentum)."""
    optimizer = config.optimizer
    if not group.decay or group.factor is None:
        return 0.0
    rate = 1.0 if optimizer.decay == "independent" else optimizer.learning_rate * group.factor
    return rate * optimizer.weight_decay
