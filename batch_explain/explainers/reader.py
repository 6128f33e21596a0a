"""Pickles and joblib's files, read opcode by opcode; what a name means, and what is made of it, is up to the subclass.

joblib writes a pickle in which each array is replaced by a wrapper, followed by the array's bytes or, for an array of
objects, by another pickle. Python's own unpickler calls whatever lies on its stack, builds on any object and fills
anything that has an ``append``; here all of that goes through six methods.
"""

import _compat_pickle
import copyreg
import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from batch_explain.explainers.stream import PickleStream

_PythonUnpickler: Any = pickle._Unpickler

JOBLIB_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"


class JoblibArray:
    """Stands for joblib's wrapper of an array."""

    subclass: Any
    shape: Any
    order: Any
    dtype: Any
    numpy_array_alignment_bytes: Any = None


class PickleReader(_PythonUnpickler):  # type: ignore[misc]
    """Reads one pickle, or one file of joblib.

    Pure Python's unpickler, as in joblib itself: the one in C does not let its opcodes be replaced.

    Parameters
    ----------
    stream : PickleStream
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, stream: PickleStream) -> None:
        super().__init__(stream)
        self._stream = stream

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        raise NotImplementedError

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """REDUCE, INST, OBJ."""
        raise NotImplementedError

    def make(self, kind: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """NEWOBJ, NEWOBJ_EX: an instance that was not initialised."""
        raise NotImplementedError

    def build(self, instance: Any, state: Any) -> None:
        """BUILD: set an instance's state."""
        raise NotImplementedError

    def fill(self, container: Any, items: list[Any]) -> None:
        """APPEND, APPENDS, ADDITEMS: add to a list or a set."""
        raise NotImplementedError

    def fill_map(self, container: Any, items: list[tuple[Any, Any]]) -> None:
        """SETITEM, SETITEMS: add to a mapping."""
        raise NotImplementedError

    def nested(self) -> "PickleReader":
        """A reader of the same kind, for the pickle of an array of objects in the same file."""
        return type(self)(self._stream)

    def old_name(self, module: str, name: str) -> tuple[str, str]:
        """A name as Python 3 has it: protocols 0 to 2 have Python 2's."""
        if self.proto < 3:
            if (module, name) in _compat_pickle.NAME_MAPPING:
                return _compat_pickle.NAME_MAPPING[module, name]
            return _compat_pickle.IMPORT_MAPPING.get(module, module), name
        return module, name

    def read_array(self, wrapper: JoblibArray) -> Any:
        """The array whose bytes follow.

        Raises
        ------
        pickle.UnpicklingError
            If the wrapper does not describe an array.
        """
        dtype, shape = wrapper.dtype, wrapper.shape
        if not (isinstance(dtype, np.dtype) and isinstance(shape, tuple) and all(_is_size(n) for n in shape)):
            raise pickle.UnpicklingError("an array has no type or no shape")
        if dtype.hasobject:
            array = self.nested().load()
            if not (isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape):
                raise pickle.UnpicklingError("an array of objects is another one than announced")
            return array
        if wrapper.numpy_array_alignment_bytes is not None:
            self._stream.read(self._stream.read(1)[0])
        count = int(np.prod([int(n) for n in shape], dtype=object))
        if count and not dtype.itemsize:
            raise pickle.UnpicklingError("an array of nothing")
        flat = np.frombuffer(self._stream.read_buffer(count * dtype.itemsize), dtype, count)
        array = flat.reshape(shape[::-1]).T if wrapper.order == "F" else flat.reshape(shape)
        if not dtype.isnative:
            array = array.astype(dtype.newbyteorder("="))
        return array.view(np.matrix) if wrapper.subclass is np.matrix else array

    # The opcodes.

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], _tuple(args))

    dispatch[pickle.REDUCE[0]] = _load_reduce

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], _tuple(args), {})

    dispatch[pickle.NEWOBJ[0]] = _load_newobj

    def _load_newobj_ex(self) -> None:
        named, args = self.stack.pop(), self.stack.pop()
        if type(named) is not dict:
            raise pickle.UnpicklingError("named arguments are no dict")
        self.stack[-1] = self.make(self.stack[-1], _tuple(args), named)

    dispatch[pickle.NEWOBJ_EX[0]] = _load_newobj_ex

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        kind = self.find_class(module, name)
        args = tuple(self.pop_mark())
        self.append(self._instance(kind, args))

    dispatch[pickle.INST[0]] = _load_inst

    def _load_obj(self) -> None:
        kind, *args = self.pop_mark()
        self.append(self._instance(kind, tuple(args)))

    dispatch[pickle.OBJ[0]] = _load_obj

    def _instance(self, kind: Any, args: tuple[Any, ...]) -> Any:
        return self.call(kind, args) if args else self.make(kind, (), {})

    def _load_build(self) -> None:
        state = self.stack.pop()
        instance = self.stack[-1]
        if isinstance(instance, JoblibArray):
            if type(state) is not dict:
                raise pickle.UnpicklingError("an array's description is no dict")
            vars(instance).update(state)
            self.stack[-1] = self.read_array(instance)
        else:
            self.build(instance, state)

    dispatch[pickle.BUILD[0]] = _load_build

    def _load_append(self) -> None:
        item = self.stack.pop()
        self.fill(self.stack[-1], [item])

    dispatch[pickle.APPEND[0]] = _load_append

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self.fill(self.stack[-1], items)

    dispatch[pickle.APPENDS[0]] = _load_appends
    dispatch[pickle.ADDITEMS[0]] = _load_appends

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill_map(self.stack[-1], [(key, value)])

    dispatch[pickle.SETITEM[0]] = _load_setitem

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self.fill_map(self.stack[-1], list(_pairs(items)))

    dispatch[pickle.SETITEMS[0]] = _load_setitems

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.fill_map(self.stack[-1], list(_pairs(items)))

    dispatch[pickle.DICT[0]] = _load_dict

    def _load_frozenset(self) -> None:
        items = self.pop_mark()
        made: set[Any] = set()
        self.fill(made, items)
        self.append(frozenset(made))

    dispatch[pickle.FROZENSET[0]] = _load_frozenset

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8

    def _load_extension(self, size: int) -> None:
        """EXT: a number in this process's registry. The cache behind it would skip ``find_class``."""
        code = int.from_bytes(self.read(size), "little")
        known = copyreg._inverted_registry.get(code)  # type: ignore[attr-defined]
        if known is None:
            raise pickle.UnpicklingError(f"extension code {code}, which nothing here has registered")
        self.append(self.find_class(*known))

    dispatch[pickle.EXT1[0]] = lambda self: self._load_extension(1)
    dispatch[pickle.EXT2[0]] = lambda self: self._load_extension(2)
    dispatch[pickle.EXT4[0]] = lambda self: self._load_extension(4)


def _is_size(number: Any) -> bool:
    return isinstance(number, int | np.integer) and int(number) >= 0


def _tuple(args: Any) -> tuple[Any, ...]:
    if type(args) is not tuple:
        raise pickle.UnpicklingError("arguments are no tuple")
    return args


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(items) % 2:
        raise pickle.UnpicklingError("a key has no value")
    return zip(items[::2], items[1::2], strict=True)
