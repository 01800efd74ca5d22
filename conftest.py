"""What all tests share: compiled programs, and how many examples a randomized test tries.

Programs that several tests compile are compiled once: a cache for all processes of the session. `make` keeps it in the
virtual environment for the next session; where nothing is said it is gone with the session.
"""

import atexit
import gc
import os
import shutil
import tempfile

from hypothesis import settings

import vit_core.checkpoints  # noqa: F401  # first by Python: pytest would make a second module of a test's package
from vit_core.libtpu import silence_libtpu

for profile, examples in {"quick": 100, "release": 400}.items():
    settings.register_profile(profile, max_examples=examples, deadline=None, derandomize=True)
settings.load_profile("quick")  # `make test-release` asks for the other one

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # nobody keeps one, and this is the first of the session's processes
    cache = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
silence_libtpu()

# The libraries make some millions of objects that stay. To look through all of them for garbage, again and again, took
# a tenth of the tests' time.
gc.disable()


def pytest_collection_finish() -> None:
    """All is imported: from now on only what tests make is looked through."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Lets the libraries' objects go, of which some complain of others that are still there at the end."""
    gc.unfreeze()
