"""The table of a tar file's members: where tarfile finds them, kept for large files, read again when it is damaged."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vit_train.data.sources import tar_members


def write(file: Path, count: int, format: int) -> dict[str, bytes]:
    """A tar file with names of every length, a folder, a link and a hidden file; returns what the others contain."""
    rng, contents = np.random.default_rng(count), {}
    with tarfile.open(file, "w", format=format) as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard")):
            other = tarfile.TarInfo(name)
            other.type, other.linkname = kind, "/etc/passwd"
            tar.addfile(other)
        for i in range(count):
            name = f"{'long/' * (i % 40)}{i:04}.jpg" if i else ".hidden.jpg"
            member = tarfile.TarInfo(name)
            content = rng.bytes(int(rng.integers(0, 2000)))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            if i:
                contents[name] = content
    return contents


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_the_table_says(tmp_path: Path, format: int) -> None:
    contents = write(tmp_path / "t.tar", 60, format)
    (table,) = tar_members.tables([str(tmp_path / "t.tar")], tmp_path / "cache")
    whole = (tmp_path / "t.tar").read_bytes()
    found = {
        name.decode(): whole[offset : offset + size]
        for name, offset, size in zip(*(array.tolist() for array in table), strict=True)
    }
    assert found == contents
    assert not (tmp_path / "cache").exists(), "it is small"


def test_large_tables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MANY", 10)
    write(tmp_path / "t.tar", 30, tarfile.PAX_FORMAT)
    (first,) = tar_members.tables([str(tmp_path / "t.tar")], tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tar_members.tarfile, "open", None)  # nothing is read again
        (second,) = tar_members.tables([str(tmp_path / "t.tar")], tmp_path / "cache")
    for ours, theirs in zip(second, first, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept.write_bytes(kept.read_bytes()[:100])
    (third,) = tar_members.tables([str(tmp_path / "t.tar")], tmp_path / "cache")
    np.testing.assert_array_equal(third.offsets_M, first.offsets_M)
    (tmp_path / "cache/other").touch()
    (fourth,) = tar_members.tables([str(tmp_path / "t.tar")], tmp_path / "cache/other/x")  # no folder can be made
    np.testing.assert_array_equal(fourth.offsets_M, first.offsets_M)
