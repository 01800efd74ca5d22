"""Reading the processor's features from the text that Linux shows."""

from pathlib import Path

import pytest

from vit_core.processor import processor_lists

TEXT = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n"


def test_words_are_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: TEXT)
    found = [processor_lists.__wrapped__(word) for word in ("AuthenticAMD", "avx512_bf16", "avx512", "amx_bf16")]
    assert found == [True, True, False, False]


def test_without_that_file_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert not processor_lists.__wrapped__("AuthenticAMD")
