"""Settings of all tests: the cache of compiled programs, and the number of examples of a randomized test.

All processes of a test session share one cache, so that a program of several tests is compiled once. `make` keeps the
cache in the virtual environment for the next session. Without JAX_COMPILATION_CACHE_DIR the cache is a temporary
folder, which is deleted when the session ends.
"""

import atexit
import gc
import os
import shutil
import tempfile

from hypothesis import settings

# Imported before any test: otherwise pytest creates a second module for a package that contains tests.
import vit_core.checkpoints  # noqa: F401
from vit_core.libtpu import silence_libtpu

for profile, examples in {"quick": 100, "release": 400}.items():
    settings.register_profile(profile, max_examples=examples, deadline=None, derandomize=True)
settings.load_profile("quick")  # `make test-release` selects the other profile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # only in the first process: it sets the variable
    cache = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
silence_libtpu()

# The libraries create millions of objects that live until the end. Each garbage collection would visit all of them,
# which takes a tenth of the tests' time. Therefore collection is off during imports, and ignores these objects later.
gc.disable()


def pytest_collection_finish() -> None:
    """Excludes all objects that exist after the imports from garbage collection, and turns it on."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Makes the libraries' objects collectable again: some libraries warn at exit about objects that remain."""
    gc.unfreeze()
