"""Damages copies of a file or folder in many ways and opens each: a script, since it limits its own memory.

    python fuzzing.py PATH EXAMPLES LIMIT

Prints how many of the damaged copies opened and how many were refused; ends with an error for anything else.
"""

import random
import resource
import shutil
import sys
import zipfile
from pathlib import Path

SMALL = [0, 1, 2, 40, 41, 46, 48, 57, 82, 98, 99, 113, 123, 125, 127, 128, 129, 133, 134, 255]
"""Bytes that mean much in headers and pickles."""
_LONGEST_ERROR = 1200


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, changed, stuffed, bitten or with a part of it repeated, mostly where headers are."""
    if not data:
        return rng.randbytes(4)
    near = min(rng.choice([64, 2048, len(data)]), len(data))
    at = rng.randrange(near) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(near)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.choice([rng.randrange(256), rng.choice(SMALL)])]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 300) :]
    if kind == 4:
        start = rng.randrange(len(data))
        return data[:at] + data[start : start + rng.randrange(1, 100)] * rng.randrange(1, 50) + data[at:]
    changed = bytearray(data)
    for _ in range(rng.randrange(2, 20)):
        changed[min(max(at + rng.randrange(-200, 200), 0), len(data) - 1)] = rng.choice([*SMALL, rng.randrange(256)])
    return bytes(changed)


def damage(path: Path, rng: random.Random) -> None:
    """Damages a file, or one of the files of a folder. Half of the damage to a zip archive is done inside of it, with
    right checksums, since these would find every other."""
    if path.is_dir():
        path = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    if rng.random() < 0.5 and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents = {info.filename: archive.read(info) for info in archive.infolist()}
        weighted = [name for name in contents for _ in range(20 if name.endswith(".pkl") else 1)]
        chosen = rng.choice(weighted)
        contents[chosen] = damaged(contents[chosen], rng)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))


def main(path: Path, examples: int, limit: int) -> None:
    """Opens damaged copies and reads all of their arrays."""
    from vit_core.checkpoints.containers import describe_kind, open_container
    from vit_core.errors import InputError

    outcomes = {"opened": 0, "refused": 0}
    copy = path.with_name(f"damaged-{path.name}")
    for seed in range(-1, examples):
        if path.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        if seed < 0:  # imports and opens everything once
            assert len(dict(open_container(copy).arrays)) > 2
            resource.setrlimit(resource.RLIMIT_AS, (limit + _address_space(), resource.RLIM_INFINITY))
            continue
        damage(copy, random.Random(seed))
        try:
            assert describe_kind(copy)
            container = open_container(copy)
            str(container.tree)
            for name in container.arrays:
                array, entry = container.arrays[name], container.arrays.entries[name]
                assert (array.shape, array.dtype.name) == (entry.shape, entry.dtype) or entry.dtype.isupper(), seed
            outcomes["opened"] += 1
        except InputError as error:
            message = str(error)
            assert "\n" not in message, (seed, message)
            assert "does not fit in memory" not in message, (seed, message)
            assert 10 < len(message) < _LONGEST_ERROR, (seed, message)
            outcomes["refused"] += 1
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
    print(*outcomes.values())


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
