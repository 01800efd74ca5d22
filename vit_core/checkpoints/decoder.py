"""The decoder of a masked autoencoder, which a checkpoint may contain in addition to the encoder."""

from collections.abc import Mapping
from dataclasses import dataclass

from vit_core.arrays import LazyArrays
from vit_core.config import ViTConfig
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.parameters import DECODER, Parameter, parameters


@dataclass(frozen=True)
class Decoder:
    """The parts of a masked autoencoder (vit_core.masked_autoencoder) other than its encoder."""

    mae: MaskedAutoencoder
    """The masking ratio, the prediction target and the size of the decoder."""
    arrays: LazyArrays
    """The rows of the parameter table whose names begin with DECODER, in the layout on disk."""
    stated: frozenset[str] = frozenset(MaskedAutoencoder.model_fields)
    """The fields of `mae` that were read from the file; the others have their usual values."""

    def as_type(self, dtype: object) -> "Decoder":
        """The same decoder, stored in another type."""
        return Decoder(self.mae, self.arrays.as_type(dtype), self.stated)


def decoder_rows(model: ViTConfig, mae: MaskedAutoencoder) -> Mapping[str, Parameter]:
    """The rows of the parameter table for the decoder of a masked autoencoder with this encoder. Raises InputError for
    sizes that a decoder cannot have."""
    return {name: row for name, row in parameters(model, mae).items() if name.startswith(DECODER)}
