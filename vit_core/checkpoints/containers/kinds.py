"""Recognizes the kind of a file by its first bytes. Kinds that cannot be read are recognized too, so that a message can
name them."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from vit_core.checkpoints.containers.archives import Archive
from vit_core.checkpoints.containers.msgpack import is_msgpack
from vit_core.checkpoints.containers.reading import FileRange

HEAD = 600
"""Number of first bytes of a file that are enough to recognize it."""
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""The end of the index of a TensorFlow checkpoint."""
_OLD_PYTORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of PyTorch before 1.6, pickled."""
_SAVE = "load it with the library that wrote it, and save its arrays as .safetensors or .npz"


@dataclass(frozen=True)
class Kind:
    """The kind of a file."""

    text: str
    """A description with its article: "a safetensors file"."""
    reader: str = ""
    """Key in the table of readers in opening.py; "" if this kind cannot be read."""
    advice: str = _SAVE
    """What the user can do with a file that cannot be read."""


SAFETENSORS = Kind("a safetensors file", "safetensors")
NPZ = Kind("an .npz file of NumPy's", "npz")
PTH = Kind("a PyTorch file", "pth")
PICKLE = Kind("a pickle", "pth")
MSGPACK = Kind("a msgpack file", "msgpack")
SHARDS = Kind("an index of shards", "shards")
KERAS = Kind("a Keras model (.keras)", "keras")
KERAS_SHARDS = Kind("an index of Keras's weights in several files", "keras shards")

_UNPACK = "unpack it and give the file of weights in it"
_GET = "download the file itself"
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras writes them (.h5)", "hdf5")),
    (b"GGUF", Kind("a GGUF file of llama.cpp")),
    (b"ggml", Kind("a GGML file of llama.cpp")),
    (b"lmgg", Kind("a GGML file of llama.cpp")),
    (
        b"\x93NUMPY",
        Kind("an .npy file, which has one array without a name", "", "save all arrays, with their names, as .npz"),
    ),
    (b"MATLAB 5.0 MAT-file", Kind("a MATLAB file", "", "load it with scipy.io.loadmat, and save its arrays as .npz")),
    (b"\x1f\x8b", Kind("a gzip archive", "", _UNPACK)),
    (b"BZh", Kind("a bzip2 archive", "", _UNPACK)),
    (b"\xfd7zXZ\x00", Kind("an xz archive", "", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd archive", "", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "", _UNPACK)),
    (b"Rar!", Kind("a RAR archive", "", _UNPACK)),
    (b"PAR1", Kind("a Parquet file", "", "it has tables; give the file of the weights")),
    (b"SQLite format 3", Kind("an SQLite database", "", "give the file of the weights")),
    (b"\x89PNG", Kind("a PNG image", "", "give the file of the weights")),
    (b"\xff\xd8\xff", Kind("a JPEG image", "", "give the file of the weights")),
    (b"%PDF", Kind("a PDF document", "", "give the file of the weights")),
    (b"\x7fELF", Kind("a program or library", "", "give the file of the weights")),
    (b"ftrt", Kind("a TensorRT engine", "", "give the weights that it was built from")),
    (
        b"version https://git-lfs",
        Kind("a Git LFS pointer, which only refers to the file", "", f"{_GET} (git lfs pull)"),
    ),
)
_TEXT_STARTS: tuple[tuple[str, Kind], ...] = (
    (r"<!doctype html|<html|<head", Kind("an HTML page, probably an error that was saved as the file", "", _GET)),
    (r"<\?xml", Kind("an XML file", "", "give the file of the weights")),
    (r"[{\[]", Kind("a JSON file", "", "give the folder that it is in, or the file of the weights")),
)
_EXTENSIONS: dict[str, Kind] = {
    ".onnx": Kind("an ONNX model"),
    ".pb": Kind("a TensorFlow graph or SavedModel"),
    ".tflite": Kind("a TensorFlow Lite model"),
    ".mlmodel": Kind("a Core ML model"),
    ".meta": Kind("the graph of a TensorFlow checkpoint"),
    ".tar": Kind("not a tar archive, although its name ends in .tar", "", _GET),
}


def file_kind(head: bytes, name: str, source: FileRange | None = None) -> Kind:
    """The kind of a file, by its first bytes and its name. source: the whole file, needed to distinguish kinds of zip
    archives and to recognize TensorFlow checkpoints; None if only `head` is available."""
    if not head:
        return Kind("an empty file", "", _GET)
    if head[:2] == b"PK":
        return _zip_kind(source)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return SAFETENSORS
    if head[:1] == b"\x80" and _OLD_PYTORCH in head[:40]:
        return PTH
    if b"joblib.numpy_pickle" in head:
        return Kind("a joblib file", "", "load it with joblib and save its arrays as .npz")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLE
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return Kind("a tar archive (packed files, or PyTorch's format before 0.2)", "", _UNPACK)
    if head[4:8] == b"TFL3":
        return _EXTENSIONS[".tflite"]
    if is_msgpack(head):
        return MSGPACK
    if not any(head):
        return Kind("a file of zeros, as an unfinished download is", "", _GET)
    return _text_kind(head, name) or _kind_by_name(head, name, source)


def _zip_kind(source: FileRange | None) -> Kind:
    if source is None:
        return Kind("a zip archive, as PyTorch's and NumPy's files are", "pth")
    try:
        names = Archive(source).names
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Kind("a damaged zip archive (perhaps a .pth or .npz file whose copy is incomplete)", "", _GET)
    if all(name.endswith(".npy") for name in names):
        return NPZ
    if any(re.fullmatch(r"(?:[^/]+/)?data\.pkl", name) for name in names):
        return PTH
    if any(name.endswith("weights.h5") for name in names):
        return KERAS
    if any(name.endswith(("models/model.json", "archive_format")) for name in names):
        return Kind("an exported PyTorch program (.pt2)", "", "save the model's state_dict() with torch.save")
    return Kind("a zip archive without weights at its top level", "", _UNPACK)


def _text_kind(head: bytes, name: str) -> Kind | None:
    try:
        text = head[:-4].decode() if len(head) >= HEAD else head.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text or sum(char.isprintable() or char.isspace() for char in text) < len(text):
        return None
    for pattern, kind in _TEXT_STARTS:
        if re.match(rf"\s*(?:{pattern})", text, re.IGNORECASE):
            indices = {".index.json": SHARDS, ".weights.json": KERAS_SHARDS} if kind.text == "a JSON file" else {}
            return next((index for end, index in indices.items() if name.endswith(end)), kind)
    return Kind("a text file", "", "give the file of the weights")


def _kind_by_name(head: bytes, name: str, source: FileRange | None) -> Kind:
    if re.search(r"\.data-\d{5}-of-\d{5}$", name):
        return Kind("a TensorFlow checkpoint")
    if source is not None and source.length >= 8 and source.read(source.length - 8, 8) == _TABLE_MAGIC:
        return Kind("a TensorFlow checkpoint")
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a"):
        return _EXTENSIONS[".onnx"]
    return _EXTENSIONS.get(
        PurePosixPath(name).suffix, Kind("a file of an unknown kind", "", "give the file of the weights")
    )
