"""Translates names of activations in arguments of training scripts to ours."""

from typing import Any

_OURS = {
    **dict.fromkeys(("gelu", "exactgelu", "geluactivation"), "gelu"),
    **dict.fromkeys(
        (
            "gelutanh",
            "gelunew",
            "gelupytorchtanh",
            "pytorchgelutanh",
            "gelufast",
            "newgeluactivation",
            "fastgeluactivation",
        ),
        "gelu_tanh",
    ),
    **dict.fromkeys(("quickgelu", "quickgeluactivation"), "quick_gelu"),
    **dict.fromkeys(("silu", "swish", "siluactivation"), "silu"),
}
"""Their name, in lower case and without underscores -> our name."""
_UNKNOWN = ("none", "partial")
"""Text that does not name an activation: an option that was not set, and a functools.partial."""


def activation_named(stated: Any) -> str | None:
    """Our name of an activation that is given as text or as a class ("QuickGELU", `torch.nn.GELU`). If we have no name
    for it, the last part of the given name. None if the value is not a name."""
    text = getattr(stated, "kind", stated)  # a class is a StandIn
    if not isinstance(text, str) or not text:
        return None
    name = text.rpartition(".")[2]
    if name.lower() in _UNKNOWN:
        return None
    return _OURS.get(name.replace("_", "").lower(), name)
