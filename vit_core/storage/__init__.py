"""Local paths and object stores (gs://, s3://, memory://) behind one set of operations."""

from vit_core.storage.locations import (
    Location,
    absolute,
    check_writable,
    is_local,
    local_copy,
    location,
    remove_tree,
    require_local,
)
from vit_core.storage.locks import exclusive
from vit_core.storage.object_store import StorageError, StorePath
from vit_core.storage.staging import staged_files

__all__ = [
    "Location",
    "StorageError",
    "StorePath",
    "absolute",
    "check_writable",
    "exclusive",
    "is_local",
    "local_copy",
    "location",
    "remove_tree",
    "require_local",
    "staged_files",
]
