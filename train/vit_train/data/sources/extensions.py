"""Names of images without their extensions, as tables from competitions have them: "img_001" for img_001.jpg."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vit_core.errors import InputError, abbreviate
from vit_core.image_files import extensions


def with_extensions(folder: Path, paths: Sequence[str], places: Sequence[str]) -> list[str]:
    """Paths below a folder; those without an image's extension get that of the only image of this name beside them.

    Paths that are files already, and those without such an image, are not changed. places: where each path is written.
    Raises InputError, which names that place, if several images have the name of a path.
    """
    found: dict[str, dict[str, list[str]]] = {}
    completed = list(paths)
    for i, path in enumerate(paths):
        if _has_extension(path):
            continue
        above, name = os.path.split(path)
        if above not in found:
            found[above] = _images_by_name(folder / above)
        images = found[above].get(name, [])
        if len(images) > 1 and not (folder / path).is_file():
            raise InputError(f"{places[i]}: {path} is the name of several images; write one of {abbreviate(images)}")
        if len(images) == 1 and not (folder / path).is_file():
            completed[i] = os.path.join(above, images[0])
    return completed


def _has_extension(path: str) -> bool:
    return os.fsencode(os.path.splitext(path)[1].lower()) in extensions()


def _images_by_name(folder: Path) -> dict[str, list[str]]:
    """The images directly in a folder by their names without extensions; none if the folder is missing."""
    images: dict[str, list[str]] = defaultdict(list)
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if _has_extension(name):
                images[os.path.splitext(name)[0]].append(name)
    return images
