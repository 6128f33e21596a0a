"""What a pickle holds, without importing, making or calling any of it: for looking, on any Python.

Nothing is decided by this: what may run is decided by :mod:`batch_explain.explainers.guard` at the moment of use.
"""

import contextlib
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from batch_explain.explainers import rebuild
from batch_explain.explainers.guard import canonical
from batch_explain.explainers.reader import JOBLIB_WRAPPER, JoblibArray, PickleReader
from batch_explain.explainers.stream import PickleStream

# Rebuilt for real: plain values and numpy's arrays.
_REAL = {
    name: rebuild.FUNCTIONS[name]
    for name in (
        "_codecs.encode", "builtins.bytearray", "builtins.bytes", "builtins.complex", "builtins.frozenset",
        "builtins.set", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer", "numpy.dtype",
    )
}  # fmt: skip
_ARRAYS = {"numpy.ndarray": np.ndarray, "numpy.matrix": np.matrix}


@dataclass(eq=False)
class Name:
    """A class or function that the pickle names."""

    full: str

    def __repr__(self) -> str:
        return self.full


@dataclass(eq=False)
class Thing:
    """What the pickle would have made: by calling ``kind``, or of the class ``kind``.

    Attributes
    ----------
    kind : str
        ``package.module.Class``.
    args : tuple
    state : object
        What was given to BUILD; None: nothing was.
    items : list
        Elements added to it; pairs, where it was filled like a dict.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> dict[str, Any]:
        """The state, where it is one of named attributes."""
        states = self.state if type(self.state) is tuple and len(self.state) == 2 else (self.state,)
        return {str(name): value for state in states if isinstance(state, dict) for name, value in state.items()}

    def get(self, name: str, otherwise: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, otherwise)

    @property
    def class_name(self) -> str:
        """The last part of ``kind``."""
        return self.kind.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"<{self.kind}>"


@dataclass(frozen=True)
class Skeleton:
    """A pickle, looked at.

    Attributes
    ----------
    root : object
        Plain values, lists, dicts and numpy arrays as they are; anything else a :class:`Thing` or a :class:`Name`.
    imports : tuple of str
        All that it names, sorted.
    protocol : int
        The pickle protocol.
    compression : str or None
    """

    root: Any
    imports: tuple[str, ...]
    protocol: int
    compression: str | None

    def walk(self) -> Iterator[Any]:
        """Every object in it, once, parents first."""
        seen: set[int] = set()
        pending = [self.root]
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            pending += reversed(_parts(node))

    def things(self, *class_names: str) -> Iterator[Thing]:
        """The things of some classes."""
        return (node for node in self.walk() if isinstance(node, Thing) and node.class_name in class_names)


def skeleton_of(data: bytes) -> Skeleton:
    """Look at a pickle, or at what joblib wrote.

    Raises
    ------
    ArtifactError
        If it expands beyond every measure.
    Exception
        Of many classes, if it is damaged or no pickle.
    """
    stream = PickleStream(data)
    reader = _InertReader(stream)
    root = reader.load()
    return Skeleton(root, tuple(sorted(reader.imports)), reader.proto, stream.compression)


def imports_of(data: bytes) -> tuple[str, ...]:
    """All that a pickle names, as far as it can be read."""
    reader = _InertReader(PickleStream(data))
    with contextlib.suppress(Exception):  # damaged, or made to look so
        reader.load()
    return tuple(sorted(reader.imports))


class _InertReader(PickleReader):
    def __init__(self, stream: PickleStream, imports: set[str] | None = None) -> None:
        super().__init__(stream)
        self.imports: set[str] = set() if imports is None else imports
        self.proto = 0

    def nested(self) -> "_InertReader":
        return _InertReader(self._stream, self.imports)

    def find_class(self, module: str, name: str) -> Any:
        full = ".".join(self.old_name(str(module), str(name)))
        if canonical(full) == JOBLIB_WRAPPER:
            return JoblibArray
        self.imports.add(full)
        return _ARRAYS.get(canonical(full)) or Name(full)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        if isinstance(function, type) and function is not JoblibArray:
            return Thing(f"numpy.{function.__name__}", args)
        if not isinstance(function, Name):
            return Thing(repr(function)[:60], args)
        known = canonical(function.full)
        if known == "copyreg._reconstructor" and isinstance(args[0], Name):
            made = Thing(args[0].full)
            made.items = list(args[2]) if isinstance(args[2], list | tuple | set | dict) else []
            return made
        if known in ("copyreg.__newobj__", "copyreg.__newobj_ex__") and args and isinstance(args[0], Name):
            return Thing(args[0].full, args[1:])
        if known == "collections.OrderedDict" and not args:
            return OrderedDict()
        if known.endswith("_function_setstate") and len(args) == 2 and isinstance(args[0], Thing):
            args[0].state = args[1]  # cloudpickle drops the result of this call
        if known in _REAL:
            try:
                return _REAL[known](self, *args)
            except Exception:  # not as genuine pickles have it: recorded as it is
                pass
        return Thing(function.full, args)

    def make(self, kind: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if kind is JoblibArray:
            return JoblibArray()
        return Thing(kind.full if isinstance(kind, Name) else repr(kind)[:60], (*args, *named.items()))

    def build(self, instance: Any, state: Any) -> None:
        if isinstance(instance, np.dtype):
            rebuild.set_dtype_state(instance, state)
        elif isinstance(instance, np.ndarray):
            instance.__setstate__(state)
        elif isinstance(instance, Thing):
            instance.state = state

    def fill(self, container: Any, items: list[Any]) -> None:
        if isinstance(container, list):
            container.extend(items)
        elif isinstance(container, set) and all(_is_key(item) for item in items):
            container.update(items)
        elif isinstance(container, Thing):
            container.items.extend(items)

    def fill_map(self, container: Any, items: list[tuple[Any, Any]]) -> None:
        if isinstance(container, dict):
            container.update((key if _is_key(key) else Thing("unhashable", (key,)), value) for key, value in items)
        elif isinstance(container, Thing):
            container.items.extend(items)

    def _load_frozenset(self) -> None:
        items = tuple(self.pop_mark())  # before 'append' is looked up: it is the stack's
        self.append(items)

    dispatch: ClassVar[dict[int, Any]] = {
        **PickleReader.dispatch,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.PERSID[0]: lambda self: self.append(Thing("persistent id", (self.readline()[:-1].decode(),))),
        pickle.BINPERSID[0]: lambda self: self.append(Thing("persistent id", (self.stack.pop(),))),
    }


def _is_key(value: Any, depth: int = 0) -> bool:
    if isinstance(value, tuple):
        return depth < 20 and all(_is_key(part, depth + 1) for part in value)
    return value is None or isinstance(value, str | bytes | int | float | Name | Thing | np.generic)


def _parts(node: Any) -> list[Any]:
    if isinstance(node, Thing):
        return [*node.args, node.state, *node.items]
    if isinstance(node, dict):
        return [part for pair in node.items() for part in pair]
    if isinstance(node, list | tuple | set):
        return list(node)
    if isinstance(node, np.ndarray) and node.dtype == object:
        return list(node.flat)
    return []
