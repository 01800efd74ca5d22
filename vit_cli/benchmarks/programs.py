"""`vit bench program`: train steps compiled for TPUs that are not present, and the work of a chip in their programs.

The trainer's own step is compared with a plain data-parallel step of our model and of other libraries' models: the
gradients of the mean loss and optax's AdamW, jitted, with all parameters and a part of the batch on each chip.
"""

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_cli.benchmarks.implementations import Implementation, Setting, implementations
from vit_cli.benchmarks.jax_runner import open_network, train_step
from vit_core.errors import InputError
from vit_core.schema import Positive, Schema
from vit_core.storage import Location, json_report, staged_files
from vit_train import config
from vit_train.config import Optimizer, TrainConfig
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.train_step import TrainStep
from vit_train.planning.compilation import Compiled, compile_cached, installed_version
from vit_train.planning.plan import Target

Lower = Callable[[], jax.stages.Lowered]

TRAINER = "vit pretrain"
"""The trainer's step; the layers are scanned, without --no-scan."""


WRITTEN = json_report("a file of vit bench program", "topology", "setting", "compiled")
"""The files that `vit bench program --json` replaces."""


class Programs(Schema):
    """The results of `vit bench program`, and its file."""

    topology: str
    devices: Positive
    fsdp: Positive
    """Devices that share the parameters in the trainer's step."""
    setting: Setting
    versions: dict[str, str]
    compiled: dict[str, Compiled]
    """Each step by name."""
    absent: dict[str, str]
    """Steps that are not compiled, and the reasons."""

    @property
    def model_flops(self) -> float:
        """FLOPs of the model in a step on one device, computed from its shapes."""
        return self.setting.flops["train"] * self.setting.batch_size / self.devices


def steps(
    setting: Setting, fsdp: int, target: Target, checkouts: dict[str, str]
) -> tuple[dict[str, Lower], dict[str, str]]:
    """Functions that lower each step for the devices, by name; and the other steps, with the reasons."""
    found: dict[str, Lower] = {
        TRAINER: partial(_trainer, setting, fsdp, target, scan=True),
        f"{TRAINER} --no-scan": partial(_trainer, setting, fsdp, target, scan=False),
    }
    absent = {}
    for implementation in implementations(checkouts):
        if implementation.framework == "jax":
            why = implementation.why_absent(setting)
            if why is None:
                found[f"plain, {implementation.name}"] = partial(_plain, implementation, setting, target)
            else:
                absent[implementation.name] = why
    return found, absent


def compile_steps(
    setting: Setting,
    fsdp: int,
    target: Target,
    lowered_by: dict[str, Lower],
    absent: dict[str, str],
    about_to: Callable[[str], None],
) -> Programs:
    """Compiles every step; about_to: called with the name of the next one."""
    compiled, absent = {}, dict(absent)
    first = target.devices[0]
    for name, lower in lowered_by.items():
        about_to(name)
        try:
            compiled[name], _ = compile_cached(lower(), f"{target.name} {first.platform} {first.device_kind}")
        except InputError as error:  # a checkout that cannot be imported
            absent[name] = str(error)
    return Programs(
        topology=target.name,
        devices=len(target.devices),
        fsdp=fsdp,
        setting=setting,
        versions={package: installed_version(package) for package in ("jax", "flax", "optax", "libtpu")},
        compiled=compiled,
        absent=absent,
    )


def write_programs(file: Location, programs: Programs) -> None:
    """Replaces the file."""
    with staged_files(file.parent, (file.name,)) as stage:
        (stage / file.name).write_text(json.dumps(programs.model_dump(mode="json"), indent=1) + "\n")


def _trainer(setting: Setting, fsdp: int, target: Target, scan: bool) -> jax.stages.Lowered:
    """The trainer's step, for images of 8 bits, with AdamW and nothing else that recipes add."""
    run = TrainConfig(
        model=setting.model,
        optimizer=Optimizer(weight_decay=0.05),
        steps=1000,
        batch_size=setting.batch_size,
        compute_dtype=setting.dtype,
        scan=scan,
        mesh=config.Mesh(fsdp=fsdp),
    )
    run = run.replace(mesh=run.mesh.over(len(target.devices), run.model))
    return TrainStep(run, make_mesh(run.mesh, run.model, target.devices)).lower()


def _plain(implementation: Implementation, setting: Setting, target: Target) -> jax.stages.Lowered:
    """A plain data-parallel step: every chip has all parameters and its part of the batch."""
    mesh = Mesh(np.array(target.devices), ("batch",))
    whole, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    apply, initial = open_network(implementation, setting)
    step, begin = train_step(apply, jnp.dtype(setting.dtype))
    params = jax.eval_shape(initial)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), (params, jax.eval_shape(begin, params))
    )
    size = setting.batch_size, *setting.model.image_size, setting.model.channels
    images_BHWC = jax.ShapeDtypeStruct(size, setting.dtype, sharding=by_rows)
    labels_B = jax.ShapeDtypeStruct(size[:1], "int32", sharding=by_rows)
    return jax.jit(step, donate_argnums=0, out_shardings=(whole, whole)).lower(state, images_BHWC, labels_B)
