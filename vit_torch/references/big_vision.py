"""Opens big_vision's .npz files with timm's own loader, which reads both of Google's code bases."""

from vit_torch.references.google import LIBRARY, open_reference

__all__ = ["LIBRARY", "open_reference"]
