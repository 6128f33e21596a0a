"""An unpickler that makes and calls only what is on the list, and refuses everything else before it runs."""

import pickle
import sys
import types
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any

import numpy as np

from batch_explain.explainers import rebuild
from batch_explain.explainers.allowlist import ALIASES, CALLED, CLASSES, MODULE_ALIASES, VALUES
from batch_explain.explainers.reader import JOBLIB_WRAPPER, JoblibArray, PickleReader
from batch_explain.explainers.rebuild import Rebuilt
from batch_explain.explainers.stream import PickleStream

_NEVER_BUILT = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, np.ufunc, Enum, Rebuilt,
)  # fmt: skip
_DEEPEST_KEY = 20
_BASES = (dict, list, tuple, set, frozenset, int, float, str, bytes)


class RefusedError(pickle.UnpicklingError):
    """A pickle asks for something that is not on the list.

    Parameters
    ----------
    name : str
        ``package.module.Class``, or what it tried to do.
    named : bool
        Whether ``--trust`` could allow it.
    """

    def __init__(self, name: str, named: bool = False) -> None:
        super().__init__(name)
        self.name = name
        self.named = named


def is_listed(name: str) -> bool:
    """Whether a name is on the list."""
    name = canonical(name)
    return name == JOBLIB_WRAPPER or name in _REBUILT or any(name in names for names in (_CLASSES, _CALLED, _VALUES))


def canonical(name: str) -> str:
    """The one spelling of names that have several: numpy moved its insides in version 2."""
    for old, new in MODULE_ALIASES.items():
        if name.startswith(old + "."):
            name = new + name[len(old) :]
    if name.startswith("numpy._core."):
        name = "numpy.core." + name.removeprefix("numpy._core.")
    return ALIASES.get(name, name)


def _names(table: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {f"{module}.{name}": (module, name) for module, names in table.items() for name in names.split()}


_CLASSES, _CALLED, _VALUES = _names(CLASSES), _names(CALLED), _names(VALUES)


class GuardedReader(PickleReader):
    """Opens a pickle or joblib file with what is on the list, and what is trusted.

    Parameters
    ----------
    stream : PickleStream
    trust : iterable of str
        Names that are allowed as well, exactly: ``package.module.Class``.

    Raises
    ------
    RefusedError
        From :meth:`load`, before what is refused has run.
    """

    def __init__(self, stream: PickleStream, trust: Iterable[str] = ()) -> None:
        super().__init__(stream)
        self.trust = frozenset(trust)
        # what this file may make and call: the very objects that its names stand for
        self._made: dict[int, Any] = {}
        self._called: dict[int, Any] = {}

    def nested(self) -> "GuardedReader":
        """A reader with the same trust."""
        return GuardedReader(self._stream, self.trust)

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for, if it may be used."""
        module, name = self.old_name(module, name)
        if f"{module}.{name}" in self.trust:
            found = _resolve(module, name)
            self._made[id(found)] = self._called[id(found)] = found
            return found
        full = canonical(f"{module}.{name}")
        if full == JOBLIB_WRAPPER:
            self._made[id(JoblibArray)] = JoblibArray
            return JoblibArray
        if full in _REBUILT:
            return _REBUILT[full]
        for table in (_CLASSES, _CALLED, _VALUES):
            if full in table:
                found = _resolve(*table[full])
                if table is _CLASSES and not isinstance(found, type):
                    raise RefusedError(f"{full}, which is no class here")
                if full in _CLASSES:
                    self._made[id(found)] = found
                if full in _CALLED:
                    self._called[id(found)] = found
                return found
        raise RefusedError(f"{module}.{name}", named=True)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Call what may be called: never an object that the file has made."""
        if isinstance(function, Rebuilt):
            return function.function(self, *args)
        if id(function) not in self._called:
            raise RefusedError(f"calling {_described(function)}", named=False)
        return function(*args)

    def make(self, kind: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Make an instance without its ``__init__``."""
        if id(kind) not in self._made or not isinstance(kind, type):
            raise RefusedError(f"making {_described(kind)}")
        if (args or named) and not _is_named_tuple(kind) and id(kind) not in self._called:
            raise RefusedError(f"making {_described(kind)} with arguments")
        return kind.__new__(kind, *args, **named)

    def reconstructed(self, kind: Any, base: Any, state: Any) -> Any:
        """``copyreg._reconstructor``: what protocols 0 and 1 make instances with."""
        if base is object:
            return self.make(kind, (), {})
        if id(kind) not in self._made or base not in _BASES or not issubclass(kind, base) or type(state) is not base:
            raise RefusedError(f"making {_described(kind)} of {_described(base)}")
        made: Any = base.__new__(kind, state)
        if base.__init__ is not object.__init__:
            base.__init__(made, state)
        return made

    def build(self, instance: Any, state: Any) -> None:
        """Set the state of an instance, as Python does, but of nothing that others share."""
        if isinstance(instance, np.dtype):
            rebuild.set_dtype_state(instance, state)
            return
        if isinstance(instance, _NEVER_BUILT):
            raise RefusedError(f"changing {_described(instance)}")
        _check_wrapped(instance, state)
        setter = getattr(type(instance), "__setstate__", None)
        if setter is not None:
            setter(instance, state)
            return
        attributes = None
        if type(state) is tuple and len(state) == 2:
            state, attributes = state
        if state:
            if type(state) is not dict or not all(type(name) is str for name in state):
                raise RefusedError(f"a state of {_described(instance)} that is no dict of names")
            vars(instance).update(state)
        for name, value in (attributes or {}).items():
            if type(name) is not str or name.startswith("__"):
                raise RefusedError(f"setting {name!r} of {_described(instance)}")
            setattr(instance, name, value)

    def fill(self, container: Any, items: list[Any]) -> None:
        """Add to lists and sets only: other objects' ``append`` might do anything."""
        if isinstance(container, list):
            list.extend(container, items)
        elif type(container) is deque:
            container.extend(items)
        elif type(container) is set:
            for item in items:
                _check_key(item)
            container.update(items)
        else:
            raise RefusedError(f"adding to {_described(container)}")

    def fill_map(self, container: Any, items: list[tuple[Any, Any]]) -> None:
        """Add to dicts only."""
        if not isinstance(container, dict):
            raise RefusedError(f"adding to {_described(container)}")
        for key, value in items:
            _check_key(key)
            container[key] = value

    def persistent_load(self, pid: Any) -> Any:
        """Nothing that this program opens has things outside itself."""
        raise RefusedError(f"the object {str(pid)[:60]!r}, which is not in the file")


def _resolve(module: str, name: str) -> Any:
    try:
        __import__(module)
    except ImportError:
        if not module.startswith("numpy.core"):
            raise
        module = module.replace("numpy.core", "numpy._core", 1)
        __import__(module)
    found: Any = sys.modules[module]
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(f"no {name} in {module}") from None
    return found


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and kind is not tuple


def _check_wrapped(instance: Any, state: Any) -> None:
    """AutoML's wrapper of a preprocessor holds the name of a class, which it imports and calls when it is fitted."""
    if any(base.__name__ == "PreprocWrapper" for base in type(instance).__mro__):
        if type(state) is not dict:
            raise RefusedError("a wrapped preprocessor without a state")
        module, name = state.get("module_name"), state.get("class_name")
        if (module is not None or name is not None) and f"{module}.{name}" not in _CLASSES:
            raise RefusedError(f"{module}.{name}", named=True)


def _described(thing: Any) -> str:
    if isinstance(thing, Rebuilt):
        return thing.name
    kind = thing if isinstance(thing, type) else type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name if isinstance(thing, type) else f"an object of {name}"


def _check_key(key: Any, depth: int = 0) -> None:
    """Refuse tuples so deep that hashing them overflows the stack."""
    if type(key) in (tuple, frozenset):
        if depth > _DEEPEST_KEY:
            raise RefusedError("a key of tuples within tuples")
        for part in key:
            _check_key(part, depth + 1)


_REBUILT = {
    name: Rebuilt(name, function)
    for name, function in {
        "copyreg._reconstructor": GuardedReader.reconstructed,
        "copyreg.__newobj__": lambda reader, kind, *args: reader.make(kind, args, {}),
        "copyreg.__newobj_ex__": lambda reader, kind, args, named: reader.make(kind, args, named),
        **rebuild.FUNCTIONS,
    }.items()
}
