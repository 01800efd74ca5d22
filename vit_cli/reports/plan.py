"""Prints a compiled recipe for `vit plan`."""

from collections.abc import Iterator

from vit_cli.console import say, table
from vit_core.errors import InputError
from vit_train.config import TrainConfig
from vit_train.planning.hlo import by_kind
from vit_train.planning.plan import Plan


def print_plan(plan: Plan, recipe: str) -> None:
    """Prints a plan, and whether it fits."""
    chip = plan.target.chip
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    table(f"{recipe} on {plan.target.name}, {devices}", ("the step", ""), step_rows(plan), notes=True)
    table("memory per device", ("", "size", "by"), memory_rows(plan), notes=True)
    if plan.compiled.collectives:
        columns = ("collectives, per device", "times", "results", "received", "largest")
        table("", columns, collective_rows(plan), notes=True)
    if plan.executed_share is not None:
        table("", ("the program, per device", "", ""), program_rows(plan), notes=True)
    for loop in plan.compiled.uncounted:
        say(f"loop {loop}: its collectives are counted once, because its number of iterations is not known")
    if plan.bounds:
        table("", ("a step takes at least", "", f"at {chip.name}'s peak"), bound_rows(plan), notes=True)
        longest = max(plan.bounds, key=lambda name: plan.bounds[name])
        rate = plan.config.batch_size / plan.bounds[longest]
        used = plan.training_flops * rate / plan.devices / (chip.flops or 1)
        say(f"bound by {longest}: at most {rate:,.0f} images/s ({used:.0%} MFU); an upper bound, not a forecast")
    say(f"compiled in {plan.compiled.seconds:.0f} s{' (by an earlier run)' if plan.cached else ''}")
    say(verdict(plan))


def step_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Rows of the table that describes what is compiled."""
    config, shared = plan.config, plan.config.mesh.data * plan.config.mesh.fsdp
    accumulated = f", in {config.accumulation} parts" if config.accumulation > 1 else ""
    axes = f" over {shared} of the mesh" if shared != plan.devices else ""
    yield "mesh", str(config.mesh)
    yield "batch", f"{config.batch_size}: {config.batch_size / shared:g} on a device{axes}{accumulated}"
    if len(config.networks) > 1:
        yield "tokens", f"{config.longest.tokens}: the most of the {len(config.networks)} sizes that training draws"
    yield "layers", f"{config.model.depth} {'scanned' if config.scan else 'unrolled'}, remat {config.remat}"
    yield "types", f"{config.compute_dtype or config.dtype} in passes, {config.dtype} parameters"
    yield "parameters", f"{plan.parameters:,}"
    checked = f" (XLA counts {plan.xla_flops / plan.forward_flops:.3f} times that, unrolled)" if plan.xla_flops else ""
    again = f", {plan.recomputed_flops / 1e9:,.1f} again by remat" if plan.recomputed_flops else ""
    yield "GFLOPs/image", f"{plan.forward_flops / 1e9:,.2f} forward{checked}"
    yield "", f"{plan.training_flops / 1e9:,.2f} in training{again}"


def memory_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Rows of the table of a device's memory: what is used, and what it has."""
    memory = plan.compiled.memory
    if memory is not None:
        yield "arguments", size(memory.arguments), "XLA"
    for name, share in plan.shares.items():
        yield f"  {name}", size(share), "the shards"
    if memory is not None:
        yield (
            "  padding",
            size(max(memory.arguments - sum(plan.shares.values()), 0)),
            "argument bytes not accounted for",
        )
        yield "temporaries", size(memory.temporaries), "XLA"
        yield "  activations", size(plan.activations), "an estimate: temporaries less gradients"
        yield "outputs", size(memory.outputs), f"XLA; {size(memory.aliased)} replace arguments"
        yield "program", size(memory.program), "XLA"
        yield "peak", size(memory.peak), "XLA; on a TPU with the memory on the chip"
    yield "total", size(plan.compiled.needed), "XLA, which refused to compile" if memory is None else "XLA"
    yield "capacity", size(plan.target.chip.memory), plan.target.chip.name


def collective_rows(plan: Plan) -> Iterator[tuple[object, ...]]:
    """Rows of the table of collectives, one for each kind."""
    for kind, found in by_kind(plan.compiled.collectives).items():
        times = sum(each.times for each in found)
        results, received = sum(each.times * each.size for each in found), sum(each.received for each in found)
        arrays = found[0].shape.split(", ")
        biggest = arrays[0] if len(arrays) == 1 else f"{len(arrays)} arrays, {arrays[0]} ..."
        yield kind, f"{times:,}", size(results), size(received), f"{found[0].times} x {size(found[0].size)}: {biggest}"


def program_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Rows of the table of a device's work in a step of the compiled program."""
    work = plan.compiled.work
    assert work is not None
    share = f"the model's FLOPs are {plan.executed_share:.1%} of them"
    unseen = f"without those of {work.kernels} runs of kernels, which XLA does not see"
    yield "products", f"{work.flops / 1e9:,.2f} GFLOPs", unseen if work.kernels else share
    yield "moved", size(work.moved), "to and from its large memory"
    if work.received:
        yield "received", size(work.received), f"by collectives; {work.hidden / work.received:.0%} behind products"


def bound_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Rows of the table of lower bounds of a step's time, by the part of the device that limits it."""
    chip = plan.target.chip
    peaks = {
        "FLOPs": f"{(chip.flops or 0) / 1e12:,.0f} TFLOP/s in bfloat16",
        "memory": f"{(chip.bandwidth or 0) / 1e9:,.0f} GB/s: arguments and outputs once, temporaries twice",
        "links": f"{(chip.links or 0) / 1e9:,.0f} GB/s received, every link busy",
    }
    for name, seconds in plan.bounds.items():
        yield name, f"{seconds * 1e3:,.2f} ms", peaks[name]


def summary(plan: Plan) -> str:
    """One line on whether a plan fits."""
    needed, capacity = plan.compiled.needed, plan.target.chip.memory
    if plan.fits:
        return f"fits, {size(needed)} of {size(capacity)} on each device ({needed / capacity:.1%})"
    return f"does not fit, {size(needed - capacity)} too much on each device of {size(capacity)}"


def verdict(plan: Plan) -> str:
    """One line on whether a plan fits and, if not, which options need less memory."""
    return summary(plan) if plan.fits else f"{summary(plan)}; {advice(plan)}"


def advice(plan: Plan) -> str:
    """Options that need less memory, the cheapest first."""
    config, state = plan.config, sum(plan.shares.values()) - plan.shares["batch"]
    mesh, more = config.mesh, {"none": "dots", "dots": "full", "full": "full"}[config.remat]
    ways: list[tuple[str, dict[str, object]]] = [("--compute-dtype bfloat16", {"compute_dtype": "bfloat16"})]
    if state > plan.target.chip.memory // 4:
        halves = mesh.replace(data=max(mesh.data // 2, 1), fsdp=2 * mesh.fsdp)
        ways.append((f"--mesh.data {halves.data} --mesh.fsdp {halves.fsdp}", {"mesh": halves}))
    ways.append((f"--remat {more}", {"remat": more}))
    ways.append((f"--accumulation {2 * config.accumulation}", {"accumulation": 2 * config.accumulation}))
    ways.append((f"--batch-size {config.batch_size // 2}", {"batch_size": config.batch_size // 2}))
    found = [text for text, changes in ways if is_possible(plan, changes)]
    return f"try {' or '.join(found)}; --fit searches" if found else "use more chips, or larger ones"


def is_possible(plan: Plan, changes: dict[str, object]) -> bool:
    """Whether the changes give a different config that the devices can run."""
    try:
        config = plan.config.replace(**changes)
        mesh = config.mesh.over(len(plan.target.devices), config.model)
        config.check_batch_shards(mesh.data * mesh.fsdp)
    except InputError:
        return False
    return config != plan.config


def search_rows(tried: list[Plan]) -> Iterator[tuple[object, ...]]:
    """Rows of the table of plans that a search has tried."""
    for each in tried:
        bound = f"{max(each.bounds.values()) * 1e3:,.1f} ms" if each.bounds else ""
        found = size(each.compiled.needed), "fits" if each.fits else "too much", bound
        yield each.config.mesh, each.config.remat, each.config.batch_size, *found


def options(config: TrainConfig) -> str:
    """The options that give the batch, rematerialisation and mesh that a search has chosen."""
    axes = " ".join(f"--mesh.{name} {length}" for name, length in config.mesh.axes.items())
    return f"--batch-size {config.batch_size} --remat {config.remat} {axes}"


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count:,.0f} B"
