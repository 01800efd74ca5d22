"""Compiled programs are kept between runs, so that a run which is resumed does not compile its step again."""

import jax

from vit_train.user_cache import user_cache

LARGEST = 2 * 2**30
"""Bytes; the programs that were not used for the longest time are removed beyond it."""


def keep_compiled_programs() -> None:
    """Lets JAX cache programs that take more than a second to compile, in the user's cache folder.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR for another folder, JAX_ENABLE_COMPILATION_CACHE=false for
    none.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
