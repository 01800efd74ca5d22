"""Pickles that are made to run code, or to take time or memory without end; each is put into a .pth file.

Run as a script, it opens all of them under a limit of memory, and prints how long each took.
"""

import json
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

LOADED = "the code of the file ran"
"""What the hostile calls would print or raise."""


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def integer(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + content


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, elements: int = 4, key: str = "0") -> bytes:
    """A tensor of a storage of floats."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(elements) + b"tQ"
    shape, steps = (b"(" + b"".join(map(integer, values)) + b"t" for values in (size, stride))
    arguments = b"(" + storage + integer(offset) + shape + steps + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


GOOD = tensor((2, 2), (2, 1))


def beside_weights(value: bytes, prelude: bytes = b"") -> bytes:
    """{"weights": {"w": a tensor}, "x": the value}."""
    weights = b"}" + text("w") + GOOD + b"s"
    return b"\x80\x02" + prelude + b"}(" + text("weights") + weights + text("x") + value + b"u."


def call(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + text(argument) + b"tR"


def doubled(levels: int, first: bytes, join: bytes) -> bytes:
    """A structure of two of a structure of two of ...; left on the stack."""
    code = first + b"q\x00"
    for _ in range(levels):
        code += b"h\x00h\x00" + join + b"q\x00"
    return code


def shell(*calls: bytes) -> bytes:
    return beside_weights(b"(" + b"".join(calls) + b"l")


RAISE = f"raise SystemExit({LOADED!r})"

CODE: dict[str, bytes] = {
    "os.system": shell(call("os", "system", f"echo {LOADED}")),
    "posix.system": shell(call("posix", "system", f"echo {LOADED}")),
    "exec, eval": shell(call("builtins", "exec", RAISE), call("builtins", "eval", f"print({LOADED!r})")),
    "Python 2's": shell(call("__builtin__", "eval", "1"), call("commands", "getoutput", "id")),
    "import": shell(call("builtins", "__import__", "antigravity"), call("importlib", "import_module", "this")),
    "INST": beside_weights(b"(" + text(f"echo {LOADED}") + b"ios\nsystem\n"),
    "OBJ": beside_weights(b"(cos\nsystem\n" + text(f"echo {LOADED}") + b"o"),
    "NEWOBJ": beside_weights(b"csubprocess\nPopen\n" + text("true") + b"\x85\x81"),
    "NEWOBJ_EX": beside_weights(b"csubprocess\nPopen\n" + text("true") + b"\x85}" + text("shell") + b"\x88s\x92"),
    "STACK_GLOBAL": beside_weights(text("os") + text("system") + b"\x93" + text(f"echo {LOADED}") + b"\x85R"),
    "a dotted name": beside_weights(text("os") + text("path.os.system") + b"\x93" + text("true") + b"\x85R"),
    "EXT1": beside_weights(b"\x82\x01" + text("x") + b"\x85R"),
    "EXT4": beside_weights(b"\x84\x01\x00\x00\x00)R"),
    "getattr": beside_weights(b"cbuiltins\ngetattr\ncos\nO\n" + text("system") + b"\x86R(" + text("true") + b"tR"),
    "partial": beside_weights(b"cfunctools\npartial\ncos\nsystem\n" + text("true") + b"\x86R)R"),
    "a chain of calls": beside_weights(b"cos\nsystem\n" + (b")R" * 1000)),
    "a function made of code": beside_weights(b"ctypes\nFunctionType\nctypes\nCodeType\n)R}\x86R)R"),
    "a name that we know, of another class": beside_weights(b"ctorch._utils\n_rebuild_parameter\ncos\nsystem\n\x85R)R"),
    "BUILD with __setstate__": beside_weights(
        b"ccollections\nX\n)\x81}(" + text("__setstate__") + b"cos\nsystem\nub" + text(f"echo {LOADED}") + b"b"
    ),
    "BUILD with __class__": beside_weights(b"cx\nX\n)\x81}" + text("__class__") + b"cos\nsystem\nsb"),
    "BUILD on a constructor": beside_weights(
        b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__code__") + b"cos\nsystem\ns\x86b"
    ),
    "BUILD on a list": beside_weights(b"]}" + text("append") + b"cos\nsystem\nsb" + text("x") + b"a"),
    "an OrderedDict's state": beside_weights(
        b"ccollections\nOrderedDict\n)R}" + text("__reduce__") + b"cos\nsystem\nsb"
    ),
    "appends to an object": beside_weights(b"cos\nsystem\n)\x81(" + text("true") + text("false") + b"e"),
    "items of an object": beside_weights(b"cos\nenviron\n)\x81(" + text("A") + text("B") + b"u"),
    "appends to a class": beside_weights(b"cos\nsystem\n" + text("x") + b"a"),
    "items of a class": beside_weights(b"cos\nenviron\n" + text("A") + text("B") + b"s"),
    "calls a list": beside_weights(b"])R"),
    "calls text": beside_weights(text("system") + b")R"),
    "calls a tensor": beside_weights(GOOD + b")R"),
    "a default factory": beside_weights(b"ccollections\ndefaultdict\ncos\nsystem\n\x85R"),
    "a persistent id of a class": beside_weights(b"cos\nsystem\nQ"),
    "a persistent id of text": beside_weights(b"Pos.system\n"),
    "a type of NumPy's that is a class": beside_weights(b"cnumpy\ndtype\ncos\nsystem\n\x85R"),
    "an encoding": beside_weights(b"c_codecs\nencode\n" + text("x") + text("uu") + b"\x86R"),
    "a name with a line break": beside_weights(text("os\n\x1b[2J") + text("system") + b"\x93)R"),
}
"""Would run code in Python's unpickler, or would set attributes of what it finds."""

HUGE = 2**40
NESTED_TUPLE = doubled(60, b")", b"\x86") + b"0"
TIME: dict[str, bytes] = {
    "nested tuple as a value": beside_weights(b"h\x00", NESTED_TUPLE),
    "nested tuple as a key": beside_weights(b"}h\x00Ns", NESTED_TUPLE),
    "nested tuple in a set": beside_weights(b"\x8f(h\x00\x90", NESTED_TUPLE),
    "nested tuple in a frozenset": beside_weights(b"(h\x00\x91", NESTED_TUPLE),
    "nested tuple of an old frozenset": beside_weights(b"c__builtin__\nfrozenset\n(h\x00lq\x01\x85R", NESTED_TUPLE),
    "nested tuple in a Counter": beside_weights(b"ccollections\nCounter\n}h\x00K\x01s\x85R", NESTED_TUPLE),
    "lists of lists of arrays": beside_weights(b"h\x00", doubled(60, b"]" + GOOD + b"a", b"\x86") + b"0"),
    "mappings of mappings": beside_weights(
        b"h\x00",
        b"}q\x00" + b"".join(b"0}" + text("a") + b"h\x00s" + text("b") + b"h\x00sq\x00" for _ in range(60)) + b"0",
    ),
    "a list in itself": beside_weights(b"]q\x00h\x00a"),
    "a mapping in itself": beside_weights(b"}q\x00" + text("a") + b"h\x00s"),
    "an object in itself": beside_weights(b"cx\nX\n)\x81q\x00}" + text("a") + b"h\x00sb"),
    "settings in themselves": beside_weights(
        b"comegaconf.dictconfig\nDictConfig\n)\x81q\x00}" + text("_content") + b"h\x00sb"
    ),
    "a module in itself": beside_weights(
        b"cx\nM\n)\x81q\x00}(" + text("_parameters") + b"}" + text("_modules") + b"}" + text("a") + b"h\x00sub"
    ),
    "20,000 nested lists": beside_weights(b"]" * 20_000 + b"a" * 19_999),
    "20,000 nested tuples": beside_weights(b")" + b"\x85" * 20_000),
    "20,000 nested mappings": beside_weights((b"}" + text("a")) * 20_000 + b"N" + b"s" * 20_000),
    "20,000 nested objects": beside_weights(b"N" + b"q\x000cx\nX\n)\x81h\x00b" * 20_000),
    "20,000 nested settings": beside_weights(
        b"N" + b"q\x000comegaconf\nX\n)\x81}X\x04\x00\x00\x00_valh\x00sb" * 20_000
    ),
    "20,000 nested keys": beside_weights(b"N" + b"q\x000}h\x00Ns" * 20_000),
    "6,000,000 instructions": beside_weights(b"N0" * 3_000_000 + b"N"),
    "2,000,000 mappings": beside_weights(b"(" + b"}" * 2_000_000 + b"l"),
    "a long integer": beside_weights(b"\x8b" + struct.pack("<I", 3_000_000) + b"\x7f" * 3_000_000),
    "a long integer as text": beside_weights(b"L" + b"9" * 3_000_000 + b"L\n"),
    "an integer line": beside_weights(b"I" + b"9" * 3_000_000 + b"\n"),
    "a float line": beside_weights(b"F" + b"9" * 3_000_000 + b"\n"),
    "integers with one hash": beside_weights(
        b"}(" + b"".join(integer(i * (2**61 - 1) % 2**63) + b"N" for i in range(20_000)) + b"u"
    ),
    "a mapping of 20,000 in 20,000 objects": beside_weights(
        b"(" + b"cx\nX\n)\x81h\x00b" * 20_000 + b"l",
        b"}(" + b"".join(struct.pack("<Bi", ord("J"), i) + b"N" for i in range(20_000)) + b"uq\x000",
    ),
    "pairs of mappings in 20,000 objects": beside_weights(
        b"(" + b"cx\nX\n)\x81h\x00h\x00\x86b" * 20_000 + b"l",
        b"}(" + b"".join(struct.pack("<Bi", ord("J"), i) + b"N" for i in range(20_000)) + b"uq\x000",
    ),
}
"""Would take for ever, or end in a RecursionError or a crash."""

BIG_TEXT = "x" * 1_000_000
MEMORY: dict[str, bytes] = {
    "a shape of 2**80": beside_weights(tensor((HUGE, HUGE), (0, 0))),
    "a shape of 2**40": beside_weights(tensor((HUGE,), (1,), elements=HUGE)),
    "a stride of 2**40": beside_weights(tensor((2, 2), (HUGE, 1))),
    "an offset of 2**40": beside_weights(tensor((2, 2), (2, 1), offset=HUGE)),
    "an offset of -1": beside_weights(tensor((2, 2), (2, 1), offset=-1)),
    "a stride of -1": beside_weights(tensor((4,), (-1,), offset=3)),
    "a shape of -1": beside_weights(tensor((-1, -4), (1, 1))),
    "a storage of -1": beside_weights(tensor((2,), (1,), elements=-1)),
    "a storage that is missing": beside_weights(tensor((2,), (1,), key="9")),
    "a storage elsewhere": beside_weights(tensor((2,), (1,), key="../data.pkl")),
    "10,000 dimensions": beside_weights(tensor((1,) * 10_000, (1,) * 10_000)),
    "memo 2**31": beside_weights(b"Nr\xff\xff\xff\x7f"),
    "text of 2**63": beside_weights(b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"x"),
    "bytes of 2**32": beside_weights(b"B\xff\xff\xff\xff" + b"x"),
    "a bytearray of 2**62": beside_weights(b"\x96" + struct.pack("<Q", 2**62)),
    "a frame of 2**63": beside_weights(b"\x95" + struct.pack("<Q", 2**63 - 1) + b"N"),
    "encoded 10,000 times": beside_weights(
        b"(" + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 10_000 + b"l", text(BIG_TEXT) + b"q\x000"
    ),
    "copied 10,000 times": beside_weights(
        b"(" + b"c__builtin__\nset\nh\x00\x85R" * 10_000 + b"l", b"(" + b"N" * 20_000 + b"tq\x000"
    ),
    "paired 10,000 times": beside_weights(
        b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10_000 + b"l",
        b"(" + b"".join(struct.pack("<Bi", ord("J"), i) + b"N\x86" for i in range(10_000)) + b"lq\x000",
    ),
    "a NumPy array of 2**80": beside_weights(
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01("
        + integer(HUGE) * 2
        + b"tcnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R\x89C\x04abcdtb"
    ),
    "a NumPy type of 2**40 bytes": beside_weights(b"cnumpy\ndtype\n" + text(f"V{HUGE}") + b"\x85R"),
    "a NumPy scalar of text": beside_weights(
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("U999999") + b"\x85RC\x01x\x86R"
    ),
    "a file in a file in a file": beside_weights(
        b"(" + b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * 10_000 + b"l",
        b"B" + struct.pack("<I", 100_001) + b"N0" * 50_000 + b"N" + b"q\x000",
    ),
    "no instructions": b"\x80\x02",
    "no stack": b"\x80\x02R.",
    "an unknown instruction": beside_weights(b"\xff"),
    "buffers from outside": beside_weights(b"\x97\x98"),
    "a mark that is missing": b"\x80\x02Nt.",
    "nothing but text": b"\x80\x02" + text("x") + b".",
}
"""Would take memory without end, or reads outside of what the file has."""

HOSTILE = {**CODE, **TIME, **MEMORY}


def write_hostile(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A .pth file with this pickle and one storage of four floats."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def main(limit: int) -> None:
    """Opens every file, reads every array and walks through the tree, with `limit` bytes of memory at most.

    Prints [name, error or "", seconds, whether the weights beside it were read] of each, then the peak of the memory.
    """
    import resource

    from vit_core.checkpoints.containers import open_container
    from vit_core.errors import InputError

    def opened(path: Path) -> tuple[str, float, bool]:
        start, error, weights = time.perf_counter(), "", False
        try:
            container = open_container(path)
            str(container.tree)
            for name in container.arrays:
                try:
                    values = container.arrays[name]
                except InputError:
                    continue
                weights |= name == "weights.w" and values.tolist() == [[1, 2], [3, 4]]
        except InputError as caught:
            error = str(caught)
        return error, time.perf_counter() - start, weights

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        for name, pickled in HOSTILE.items():
            path = write_hostile(Path(folder) / "w.pth", pickled)
            print(json.dumps([name, *opened(path)]), flush=True)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps(["peak", "", peak * 1024, True]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
