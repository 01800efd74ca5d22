"""Image files below a folder, recognized by their extensions; no file is opened."""

import os
from collections.abc import Iterator
from functools import cache

from PIL import Image

from vit_core.errors import InputError
from vit_core.preprocess import register_formats


@cache
def extensions() -> frozenset[bytes]:
    """Extensions of the formats that Pillow reads. (It writes some formats that it does not read, such as PDF.)"""
    register_formats()
    known = Image.registered_extensions()
    return frozenset(os.fsencode(extension) for extension, format in known.items() if format in Image.OPEN)


def files_below(root: bytes, below: bytes = b"", above: tuple[tuple[int, int], ...] = ()) -> Iterator[bytes]:
    """All files in the folder `below` a root and in the folders inside it, as paths below the root, in the order of the
    file system; hidden ones are left out. Raises InputError for a link back to a folder that it is in."""
    path = os.path.join(root, below)
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise InputError(f"{os.fsdecode(_last_link(path))}: a link back to a folder that it is in; remove the link")
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            inside = os.path.join(below, entry.name)
            if entry.is_dir():
                yield from files_below(root, inside, (*above, here))
            else:
                yield inside


def _last_link(path: bytes) -> bytes:
    """The deepest symbolic link in a path; the path itself if there is none (folders mounted within themselves)."""
    parts = path.split(os.sep.encode())
    starts = (os.sep.encode().join(parts[:stop]) for stop in range(len(parts), 0, -1))
    return next((start for start in starts if os.path.islink(start)), path)


def images_below(folder: str) -> list[str]:
    """Paths of all images in a folder and in the folders inside it, sorted. Raises InputError if there are none."""
    root, known = os.fsencode(folder), extensions()
    found = [name for name in files_below(root) if os.path.splitext(name)[1].lower() in known]
    if not found:
        raise InputError(f"{folder}: no images; expected files such as .jpg or .png in it or below it")
    return [os.path.join(folder, os.fsdecode(name)) for name in sorted(found)]
