"""Local paths, stores (gs://, s3://, memory://) and the Hugging Face Hub (hf://) with the same operations."""

from vit_core.storage.hub import HubPath
from vit_core.storage.locations import (
    Location,
    Replaceable,
    absolute,
    check_new_file,
    check_new_folder,
    check_writable,
    is_local,
    json_report,
    local_copy,
    location,
    remove_tree,
    require_local,
    unwritable,
    writable_location,
)
from vit_core.storage.locks import exclusive
from vit_core.storage.object_store import StorageError, StorePath
from vit_core.storage.staging import staged_files

__all__ = [
    "HubPath",
    "Location",
    "Replaceable",
    "StorageError",
    "StorePath",
    "absolute",
    "check_new_file",
    "check_new_folder",
    "check_writable",
    "exclusive",
    "is_local",
    "json_report",
    "local_copy",
    "location",
    "remove_tree",
    "require_local",
    "staged_files",
    "unwritable",
    "writable_location",
]
