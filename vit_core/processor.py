"""What Linux tells about the processor, so that both twins choose its faster way to multiply matrices."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def processor_lists(word: str) -> bool:
    """Whether /proc/cpuinfo has the word: a feature such as "avx512_bf16", or a vendor such as "AuthenticAMD".

    False where there is no such file, as on macOS and Windows.
    """
    try:
        return word in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
