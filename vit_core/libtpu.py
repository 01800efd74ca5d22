"""Keeps libtpu quiet on machines without a TPU. Imports neither libtpu nor a framework."""

import os
from importlib.util import find_spec
from pathlib import Path

QUIET_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    # Their values do not matter, but libtpu logs errors where they are missing.
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Otherwise only one process at a time may load libtpu, as if it used a TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment variables with which libtpu logs nothing on a machine without a TPU; to be set before jax is imported."""


def silence_libtpu() -> None:
    """Sets `QUIET_ENVIRONMENT` where libtpu is installed (for `vit plan`) and there is no TPU.

    JAX loads libtpu wherever it is installed, and then libtpu reports that there is no TPU. Call before importing jax.
    """
    devices = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if not devices and find_spec("libtpu"):
        os.environ |= {name: value for name, value in QUIET_ENVIRONMENT.items() if name not in os.environ}
