"""Names of activations in training scripts' arguments, and ours."""

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
"""Without their underscores, in small letters."""
_UNKNOWN = ("none", "partial")
"""Text that names no activation: an option that was not set, and a class with arguments of its own."""


def activation_named(stated: Any) -> str | None:
    """Our name of an activation that is given as text or as a class ("QuickGELU", `torch.nn.GELU`); the last part of
    the name as it is where we have none; None for what is no name."""
    text = getattr(stated, "kind", stated)  # of the stand-in for a class
    if not isinstance(text, str) or not text:
        return None
    name = text.rpartition(".")[2]
    if name.lower() in _UNKNOWN:
        return None
    return _OURS.get(name.replace("_", "").lower(), name)
