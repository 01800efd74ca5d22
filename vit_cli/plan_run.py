"""Compiles a recipe for `vit plan`, or searches for the largest batch that fits, and prints the result."""

from vit_cli import console
from vit_cli.console import say
from vit_cli.reports.plan import options, print_plan, search_rows, summary
from vit_train.config import TrainConfig
from vit_train.planning.batch_search import find_largest_batch
from vit_train.planning.plan import Plan, Target, plan, target
from vit_train.planning.topologies import Topology


def run(recipe: str, config: TrainConfig, topology: Topology | None, search: bool) -> bool:
    """Compiles a recipe for a slice (None: for this machine), prints the plan, and returns whether it fits; with
    `search`, prints the largest batch that fits, and returns whether any does."""
    devices = target(topology)
    if search:
        return _search(recipe, config, devices)
    with console.working(f"compiling for {devices.name}"):
        compiled = plan(config, devices)
    print_plan(compiled, recipe)
    return compiled.fits


def _search(recipe: str, config: TrainConfig, devices: Target) -> bool:
    def attempt(config: TrainConfig) -> Plan:
        with console.working(f"compiling batch {config.batch_size}, remat {config.remat}, mesh {config.mesh}"):
            tried = plan(config, devices)
        say(f"mesh {config.mesh}, remat {config.remat}, batch {config.batch_size}: {summary(tried)}")
        return tried

    result = find_largest_batch(config, len(devices.devices), attempt)
    columns = ("mesh", "remat", "batch", "needs", "", "bound")
    console.table(f"tried on {devices.name}", columns, search_rows(result.tried))
    if result.best is None:
        say(f"nothing fits on {devices.name}: use a larger slice, or a smaller model")
        return False
    print_plan(result.best, recipe)
    say(f"vit pretrain {recipe} {options(result.best.config)}")
    if result.best.config.batch_size != config.batch_size:
        say(f"(the recipe's learning rate and steps are for batches of {config.batch_size})")
    return True
