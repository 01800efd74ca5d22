"""Models in JAX of other projects that no package index has, from checkouts of their repositories."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_cli.benchmarks.implementations import Setting
from vit_cli.requirements import missing
from vit_core.errors import InputError

Apply = Callable[[Any, jax.Array], jax.Array]
"""Function (parameters, images_BHWC) -> logits, with parameters in the type of the computation."""
Network = tuple[Apply, Callable[[], Any]]
"""A model's forward pass, and the function that makes its parameters, which jax.eval_shape can trace."""

_UNUSED = {
    "ml_collections": ("ml_collections",),
    "tensorflow": ("tensorflow", "tensorflow.io", "tensorflow.io.gfile"),
}
"""Modules that big_vision imports but its model does not use: those that are not installed are replaced by empty
modules."""


def big_vision(checkout: str, setting: Setting) -> Network:
    """big_vision's Linen model, from a checkout of its repository."""
    sys.path.insert(0, checkout)
    importlib.import_module("flax.training.checkpoints")  # it uses TensorFlow where there is one
    for package in missing(tuple(_UNUSED)):
        for name in _UNUSED[package]:
            sys.modules[name] = module_from_spec(ModuleSpec(name, None))
    try:
        library = importlib.import_module("big_vision.models.vit")
    except ImportError as error:
        raise InputError(f"--peer big_vision={checkout}: it cannot be imported from there ({error})") from None
    config = setting.model
    model = library.Model(
        config.num_classes,
        patch_size=config.patch_size,
        width=config.width,
        depth=config.depth,
        mlp_dim=config.mlp_dim,
        num_heads=config.heads,
        pool_type="tok",
        head_zeroinit=False,
        dtype_mm=setting.dtype,
    )
    images_BHWC = jnp.zeros((1, *config.image_size, config.channels))
    return (
        lambda params, images_BHWC: model.apply(params, images_BHWC)[0],
        jax.jit(lambda: model.init(jax.random.key(0), images_BHWC)),
    )


class _Patches(NamedTuple):
    """The argument `patches` of vision_transformer's model."""

    size: tuple[int, int]


def vision_transformer(checkout: str, setting: Setting) -> Network:
    """google-research/vision_transformer's Linen model, from a checkout of its repository. It computes in float32."""
    folder = Path(checkout) / "vit_jax"
    try:
        with _in_place_of("vit_jax", {"models_resnet": _loaded(folder / "models_resnet.py")}):
            library = _loaded(folder / "models_vit.py")
    except (ImportError, OSError) as error:
        raise InputError(f"--peer vision_transformer={checkout}: it cannot be imported from there ({error})") from None
    config = setting.model
    model = library.VisionTransformer(
        num_classes=config.num_classes,
        patches=_Patches(config.patch_size),
        hidden_size=config.width,
        transformer={
            "mlp_dim": config.mlp_dim,
            "num_heads": config.heads,
            "num_layers": config.depth,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
    )
    images_BHWC = jnp.zeros((1, *config.image_size, config.channels))
    return (
        lambda params, images_BHWC: model.apply(params, images_BHWC, train=False),
        jax.jit(lambda: model.init(jax.random.key(0), images_BHWC, train=False)),
    )


def _loaded(file: Path) -> ModuleType:
    """The module in a file of vision_transformer's package, under a name that no other package has: its package is
    called vit_jax, as one of this project. Raises ImportError or OSError."""
    name = f"vision_transformer_{file.stem}"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # in which flax looks up annotations
    spec.loader.exec_module(module)
    return module


@contextmanager
def _in_place_of(package: str, modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Context in which `from package import name` gives one of the modules."""
    stand_in, before = ModuleType(package), sys.modules.pop(package, None)
    vars(stand_in).update(modules)
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


PEERS: Mapping[str, Callable[[str, Setting], Network]] = {
    "big_vision": big_vision,
    "vision_transformer": vision_transformer,
}
"""Implementation -> the function that opens its network, with the folder of the checkout and the setting."""
