"""Functions of oneDNN in place of torch's: what they compute, and where they are used."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vit_torch import onednn

ROUNDING = 2.0**-8  # rounding to bfloat16, which has 8 significant bits, changes a value relatively by at most this


def scores() -> Tensor:
    """[2, 3, 7, 50] from -20 to 20; the last keys of the first image are padding."""
    scores_BTNM = 40 * torch.rand((2, 3, 7, 50), generator=torch.Generator().manual_seed(0)) - 20
    scores_BTNM[0, ..., 40:] = -torch.inf
    return scores_BTNM.bfloat16()


def by_onednn(scores_BTNM: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    calls: list[None] = []
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to_mkldnn", lambda x: calls.append(None) or x)
        onednn.softmax(scores_BTNM)
    return bool(calls)


def test_softmax() -> None:
    """One rounding of the result. The sum of 50 exponentials and the exponentials themselves are of float32: of 64
    roundings there, each is 2^16 times smaller than the one to bfloat16."""
    scores_BTNM = scores()
    expected = torch.softmax(scores_BTNM.double(), dim=-1)
    with torch.no_grad():
        found = onednn.softmax(scores_BTNM)
    assert found.dtype == torch.bfloat16
    smallest = torch.finfo(torch.float32).tiny  # below it values may be flushed to zero
    assert ((found - expected).abs() <= (ROUNDING + 2**-18) * expected + smallest).all()
    assert (found[0, ..., 40:] == 0).all()


def test_where_softmax_is_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "AVX512", True)
    scores_BTNM = scores()
    assert not by_onednn(scores_BTNM, monkeypatch)  # oneDNN's has no derivative
    with torch.no_grad():
        assert by_onednn(scores_BTNM, monkeypatch)
        assert not by_onednn(scores_BTNM.float(), monkeypatch)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not by_onednn(scores_BTNM, monkeypatch)
        with FlopCounterMode(display=False):
            assert not by_onednn(scores_BTNM, monkeypatch)
        monkeypatch.setattr(onednn, "AVX512", False)
        assert not by_onednn(scores_BTNM, monkeypatch)
