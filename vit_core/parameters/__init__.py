"""The table of parameters that conversion, sharding, optimizers, initialization and counts are derived from."""

from vit_core.parameters.initial_values import initial_value
from vit_core.parameters.row import Initializer, Parameter, groups_of
from vit_core.parameters.stacks import Stack, spans, stacks
from vit_core.parameters.table import DECODER, count, parameters

__all__ = [
    "DECODER",
    "Initializer",
    "Parameter",
    "Stack",
    "count",
    "groups_of",
    "initial_value",
    "parameters",
    "spans",
    "stacks",
]
