"""An interpreter of pickles that never imports or calls what a file names: pickles are read as data.

A pickle is a program for a stack machine whose instructions may import and call anything. Python's own unpickler, even
with a restricted `find_class`, sets attributes and hashes keys as the file says. Here the instructions only build
lists, dictionaries, tuples and plain values. A class is represented by its name (`Global`), and an object of a class by
the data to make it (`Instance`). The few functions that rebuild tensors and arrays have safe replacements,
`constructors`, which are looked up by name.

Time and memory are bounded by the length of the file and by MOST_OPERATIONS: deep structures are never hashed, copies
are counted, and the length of numbers is limited.
"""

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, TypeAlias

MOST_OPERATIONS = 5_000_000
"""Limit of pickle instructions in a file. A checkpoint has about ten for each array, a list one for each number."""
_LONGEST_LINE = 4096
_LONGEST_INTEGER = 1024
"""Bytes. The limit exists because Python needs quadratic time to parse an integer."""
_LONGEST_KEY = 32

Bytes: TypeAlias = bytes | mmap


class Global:
    """The name of a class or function."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Instance:
    """The data from which an object of some class would have been made."""

    __slots__ = ("arguments", "elements", "entries", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: Any = None
        """The argument of `__setstate__`, or the attributes."""
        self.entries: dict[Any, Any] = {}
        """The entries, if the class is a kind of dictionary."""
        self.elements: list[Any] = []
        """The elements, if the class is a kind of list or set."""


class Key:
    """Replaces a key of a dictionary whose hash could take unbounded time; it is hashed by identity."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class HasState:
    """Base class of the replacements to which a BUILD instruction may give a state."""

    def set_state(self, state: Any) -> None:
        """Sets the state from the file. Raises ValueError for an invalid state."""
        raise NotImplementedError


@dataclass
class Budget:
    """Limits on the work that one file may cause; both numbers decrease while it is read."""

    operations: int = MOST_OPERATIONS
    copied: int = 0
    """Bytes."""

    def copy(self, size: int) -> None:
        """Counts copied bytes. Raises ValueError if the limit is exceeded."""
        self.copied -= size
        if self.copied < 0:
            raise ValueError("a value in it is repeated too often")


Constructor: TypeAlias = Callable[..., Any]
"""A replacement of a function; it is called with the arguments in the file."""


class PickleReader:
    """Interprets one pickle that begins at `position`. After `load`, `position` is its end."""

    def __init__(
        self,
        content: Bytes,
        position: int,
        constructors: Mapping[str, Constructor],
        persistent: Callable[[Any], Any],
        budget: Budget,
    ) -> None:
        self.position = position
        self._content, self._constructors, self._persistent, self._budget = content, constructors, persistent, budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._globals: dict[str, Global] = {}

    def load(self) -> Any:
        """The object that the pickle describes. Raises ValueError, or an exception of a constructor, if it is damaged;
        callers use `readable`."""
        content, methods, budget = self._content, _METHODS, self._budget
        while self.position < len(content):
            code = content[self.position]
            self.position += 1
            if code == _STOP and self._stack:
                return self._stack.pop()
            budget.operations -= 1
            if budget.operations < 0:
                raise ValueError(f"it has more than {MOST_OPERATIONS:,} pickle instructions")
            method = methods.get(code)
            if method is None:
                raise ValueError(f"unknown pickle instruction {code}")
            try:
                method(self)
            except (IndexError, KeyError, TypeError) as error:
                raise ValueError(f"pickle instruction {code} before byte {self.position} is invalid") from error
        raise ValueError("the pickle is truncated")

    # Reading arguments

    def _take(self, length: int) -> bytes:
        content = self._content[self.position : self.position + length]
        if len(content) != length:
            raise ValueError("the pickle is truncated")
        self.position += length
        return content

    def _unpack(self, form: str, length: int) -> Any:
        return struct.unpack(form, self._take(length))[0]

    def _byte(self) -> int:
        return self._take(1)[0]

    def _line(self, longest: int | None = _LONGEST_LINE) -> bytes:
        stop = len(self._content) if longest is None else self.position + longest
        end = self._content.find(b"\n", self.position, stop)
        if end < 0:
            raise ValueError("the pickle has a line that does not end, or is too long")
        line = self._take(end - self.position)
        self.position += 1
        return line

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    # Plain values

    def _integer_line(self) -> None:
        line = self._line(_LONGEST_INTEGER)
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _long_line(self) -> None:
        self._stack.append(int(self._line(_LONGEST_INTEGER).rstrip(b"L")))

    def _long(self, length: int) -> None:
        content = self._take(length)
        is_short = length <= _LONGEST_INTEGER
        number = int.from_bytes(content, "little", signed=True) if is_short else Instance("a very long integer")
        self._stack.append(number)

    def _utf8(self, length: int) -> None:
        self._stack.append(self._take(length).decode("utf-8", "backslashreplace"))

    def _old_text(self, content: bytes) -> None:
        """A string of Python 2, which may be text or bytes: text if it is valid UTF-8, otherwise bytes."""
        try:
            self._stack.append(content.decode())
        except UnicodeDecodeError:
            self._stack.append(content)

    def _quoted(self) -> None:
        line = self._line(None).strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string has no quotes")
        self._old_text(codecs.escape_decode(line[1:-1])[0])

    # The memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # Containers

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise ValueError("the pickle's stack is empty")
        self._stack[-count:] = [items]

    def _dictionary(self) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set_items(items)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Instance):
            target.elements.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise ValueError(f"the pickle appends to a value of type {type(target).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if isinstance(target, Instance) else target
        if not isinstance(entries, dict) or len(items) % 2:
            raise ValueError(f"the pickle sets items of a value of type {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[as_key(key)] = value

    # Classes and objects

    def _global(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > _LONGEST_LINE:
            raise ValueError("the name of a class is not text, or too long")
        full = f"{module}.{name}"
        self._stack.append(self._globals.setdefault(full, Global(full)))

    def _global_lines(self) -> tuple[str, str]:
        return self._line().decode(), self._line().decode()

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _construct(self, target: object, arguments: object, keywords: object = None) -> None:
        if isinstance(arguments, str) and isinstance(target, Global) and target.name.startswith("__torch__."):
            arguments = (arguments,)  # a member of an Enum in TorchScript
        if not isinstance(arguments, tuple):
            raise ValueError("the arguments of a call are not a tuple")
        if keywords:
            arguments = (*arguments, keywords)
        if isinstance(target, Instance):  # the result of another call, such as functools.partial
            self._stack.append(Instance(f"a call of {target.kind}"[:_LONGEST_LINE], arguments))
            return
        if not isinstance(target, Global):
            raise ValueError(f"the pickle calls a value of type {type(target).__name__}")
        constructor = self._constructors.get(target.name)
        self._stack.append(constructor(*arguments) if constructor else Instance(target.name, arguments))

    def _reduce(self) -> None:
        arguments, target = self._stack.pop(), self._stack.pop()
        self._construct(target, arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments, target = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._construct(target, arguments, keywords)

    def _inst(self) -> None:
        self._global(*self._global_lines())
        target = self._stack.pop()
        self._construct(target, tuple(self._since_mark()))

    def _obj(self) -> None:
        target, *arguments = self._since_mark()
        self._construct(target, tuple(arguments))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif isinstance(target, HasState):
            target.set_state(state)
        # Other states are ignored: those that torch adds to an OrderedDict or a parameter have no weights.

    def _persist(self, name: object) -> None:
        self._stack.append(self._persistent(name))


def as_key(key: Any) -> Any:
    """The key itself, if its hash takes bounded time (plain values, short tuples of text); otherwise a `Key` for it."""
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**64 else Key(key)
    if key is None or isinstance(key, str | float | bytes | Global | Instance):
        return key
    if isinstance(key, tuple) and len(key) <= _LONGEST_KEY and all(isinstance(part, str) for part in key):
        return key
    return Key(key)


_STOP = ord(".")
_METHODS: dict[int, Callable[[PickleReader], Any]] = {
    ord(code): method
    for code, method in {
        "(": lambda r: r._marks.append(len(r._stack)),
        "0": lambda r: r._stack.pop(),
        "1": lambda r: r._since_mark(),
        "2": lambda r: r._stack.append(r._stack[-1]),
        "N": lambda r: r._stack.append(None),
        "\x88": lambda r: r._stack.append(True),
        "\x89": lambda r: r._stack.append(False),
        "I": PickleReader._integer_line,
        "J": lambda r: r._stack.append(r._unpack("<i", 4)),
        "K": lambda r: r._stack.append(r._byte()),
        "M": lambda r: r._stack.append(r._unpack("<H", 2)),
        "L": PickleReader._long_line,
        "\x8a": lambda r: r._long(r._byte()),
        "\x8b": lambda r: r._long(r._unpack("<I", 4)),
        "F": lambda r: r._stack.append(float(r._line(_LONGEST_INTEGER))),
        "G": lambda r: r._stack.append(r._unpack(">d", 8)),
        "S": PickleReader._quoted,
        "T": lambda r: r._old_text(r._take(r._unpack("<I", 4))),
        "U": lambda r: r._old_text(r._take(r._byte())),
        "V": lambda r: r._stack.append(r._line(None).decode("raw-unicode-escape", "backslashreplace")),
        "X": lambda r: r._utf8(r._unpack("<I", 4)),
        "\x8c": lambda r: r._utf8(r._byte()),
        "\x8d": lambda r: r._utf8(r._unpack("<Q", 8)),
        "B": lambda r: r._stack.append(r._take(r._unpack("<I", 4))),
        "C": lambda r: r._stack.append(r._take(r._byte())),
        "\x8e": lambda r: r._stack.append(r._take(r._unpack("<Q", 8))),
        "\x96": lambda r: r._stack.append(r._take(r._unpack("<Q", 8))),
        "p": lambda r: r._put(int(r._line(32))),
        "q": lambda r: r._put(r._byte()),
        "r": lambda r: r._put(r._unpack("<I", 4)),
        "\x94": lambda r: r._put(len(r._memo)),
        "g": lambda r: r._get(int(r._line(32))),
        "h": lambda r: r._get(r._byte()),
        "j": lambda r: r._get(r._unpack("<I", 4)),
        ")": lambda r: r._stack.append(()),
        "t": lambda r: r._stack.append(tuple(r._since_mark())),
        "\x85": lambda r: r._tuple(1),
        "\x86": lambda r: r._tuple(2),
        "\x87": lambda r: r._tuple(3),
        "]": lambda r: r._stack.append([]),
        "l": lambda r: r._stack.append(r._since_mark()),
        "}": lambda r: r._stack.append({}),
        "d": PickleReader._dictionary,
        "\x8f": lambda r: r._stack.append([]),
        "\x91": lambda r: r._stack.append(r._since_mark()),
        "a": lambda r: r._append([r._stack.pop()]),
        "e": lambda r: r._append(r._since_mark()),
        "\x90": lambda r: r._append(r._since_mark()),
        "s": lambda r: r._set_items([r._stack.pop(-2), r._stack.pop()]),
        "u": lambda r: r._set_items(r._since_mark()),
        "c": lambda r: r._global(*r._global_lines()),
        "\x93": PickleReader._stack_global,
        "R": PickleReader._reduce,
        "\x81": PickleReader._reduce,
        "\x92": PickleReader._new_with_keywords,
        "i": PickleReader._inst,
        "o": PickleReader._obj,
        "b": PickleReader._build,
        "P": lambda r: r._persist(r._line().decode()),
        "Q": lambda r: r._persist(r._stack.pop()),
        "\x80": PickleReader._byte,
        "\x95": lambda r: r._take(8),
        "\x82": lambda r: r._stack.append(Global(f"an object of the registry, {r._byte()}")),
        "\x83": lambda r: r._stack.append(Global(f"an object of the registry, {r._unpack('<H', 2)}")),
        "\x84": lambda r: r._stack.append(Global(f"an object of the registry, {r._unpack('<i', 4)}")),
    }.items()
}
"""All instructions of protocols 0 to 5, except those for buffers outside the pickle."""
