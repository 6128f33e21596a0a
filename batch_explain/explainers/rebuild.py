"""Functions of ours for the names that pickles call and that could be made to do something else.

Each takes the reader, then the arguments from the file, and refuses what genuine pickles never pass.
"""

import pickle
import re
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

_PLAIN_DTYPE = re.compile(
    r"[<>=|]?[?biufcOSUVMmBhHIlLqQpPedgFDG]\d{0,6}"
)  # numpy 1 lets the size of longer ones overflow
_METHODS = ("predict", "predict_proba", "decision_function", "transform")
_CLASS_METHODS = ("azureml.automl.runtime.featurization.data_transformer.DataTransformer._wrap_in_lst",)
_FACTORIES = (int, float, str, list, dict, set, bool, OrderedDict)
_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic")
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_LINKS = ("identity", "logit")
_LARGEST_BUFFER = 1 << 20  # of a numpy string type, bytes


class Rebuilt:
    """Stands for a name whose work is done by a function of ours; it cannot be called by what the file has made."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(f"{what}: not as numpy or Python writes it")


def dtype(_reader: Any, text: Any, align: Any = False, copy: Any = True) -> Any:
    """``numpy.dtype`` of a plain type; always a copy, so that setting its state changes no other array's."""
    _require(isinstance(text, str) and _PLAIN_DTYPE.fullmatch(text), f"the type {str(text)[:60]!r}")
    made = np.dtype(text, copy=True)
    _require(made.itemsize <= _LARGEST_BUFFER, f"the type {text}")
    return made


def set_dtype_state(made: Any, state: Any) -> None:
    """``dtype.__setstate__`` with what numpy itself would have written.

    The flags in a state tell numpy whether an array's bytes are pointers; a type that changes size while arrays of it
    exist lets them read beyond their end. So the state is taken apart, and built again from its names and fields.
    """
    _require(type(state) is tuple and 8 <= len(state) <= 9, "a type's state")
    _version, order, subtype, names, fields, itemsize, _alignment, _flags = state[:8]
    _require(order in ("<", ">", "|", "=") and subtype is None, "a type's state")
    own = made.__reduce__()[2]
    if names is not None:
        _require(made.names is None and made.kind == "V" and itemsize == made.itemsize, "a structured type")
        other = _structured(names, fields, itemsize)
        made.__setstate__((3, "|", *other.__reduce__()[2][2:8]))
    elif made.kind in "Mm" and len(state) == 9:
        _require(type(state[8]) is tuple and len(state[8]) == 2, "a time's unit")
        unit, number, *rest = state[8][1]
        unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
        _require(unit in _UNITS and type(number) is int and rest == [1, 1] and 0 < number < 1 << 31, "a time's unit")
        if unit != "generic":
            made.__setstate__(np.dtype(f"{order}{made.kind}8[{number}{unit}]").__reduce__()[2])
    elif order == ">" or own[1] == ">":
        made.__setstate__((3, order, *own[2:8]))


def _structured(names: Any, fields: Any, itemsize: int) -> Any:
    _require(type(names) is tuple and isinstance(fields, dict | types.MappingProxyType), "a structured type")
    parts = [fields.get(name) for name in names]
    _require(all(type(part) is tuple and len(part) == 2 and isinstance(part[0], np.dtype) for part in parts), "a field")
    _require(not any(part[0].hasobject for part in parts), "a field of objects")
    formats, offsets = [part[0] for part in parts], [part[1] for part in parts]
    return np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize})


def empty_array(_reader: Any, kind: Any, shape: Any, _type: Any) -> Any:
    """``_reconstruct``: an array without elements, which then gets its state."""
    _require(kind in (np.ndarray, np.matrix) and shape == (0,), "an array")
    return np.empty((0,), "b") if kind is np.ndarray else np.ndarray.__new__(np.matrix, (0,), "b")


def masked_array(_reader: Any, kind: Any, base: Any, shape: Any, _type: Any) -> Any:
    """``numpy.ma.core._mareconstruct``."""
    from numpy.ma import core

    _require(kind is np.ma.MaskedArray and base is np.ndarray and shape == (0,), "a masked array")
    return core._mareconstruct(kind, base, (0,), "b")  # type: ignore[attr-defined]


def scalar(_reader: Any, kind: Any, value: Any = None) -> Any:
    """``numpy.core.multiarray.scalar``: a single value of its bytes."""
    _require(isinstance(kind, np.dtype) and not kind.hasobject and type(value) is bytes, "a single value")
    _require(len(value) == kind.itemsize, "a single value")
    return np.frombuffer(value, kind, 1)[0] if kind.itemsize else kind.type()


def from_buffer(_reader: Any, buffer: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """``numpy.core.numeric._frombuffer``: an array of protocol 5."""
    _require(isinstance(buffer, bytes | bytearray) and isinstance(kind, np.dtype) and not kind.hasobject, "an array")
    _require(order in ("C", "F", "K", "A") and type(shape) is tuple, "an array")
    flat = np.frombuffer(buffer, kind)
    if order == "K" and axes is not None:
        return flat.reshape(shape, order="C").transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def ufunc(_reader: Any, module: Any, name: Any) -> Any:
    """``numpy.core._ufunc_reconstruct``: it would import any module."""
    import scipy.special

    place = {"numpy": np, "scipy.special": scipy.special}.get(str(module).partition("._")[0].removesuffix(".core"))
    found = getattr(place, str(name), None)
    _require(isinstance(found, np.ufunc), "a universal function")
    return found


def bit_generator(_reader: Any, name: Any = "MT19937") -> Any:
    """``numpy.random._pickle.__bit_generator_ctor``."""
    name = name.__name__ if isinstance(name, type) and issubclass(name, np.random.BitGenerator) else name
    _require(name in _BIT_GENERATORS, "a source of random numbers")
    return getattr(np.random, name)()


def random_state(reader: Any, source: Any = "MT19937", _maker: Any = None) -> Any:
    """``numpy.random._pickle.__randomstate_ctor``: it would call its second argument."""
    made = source if isinstance(source, np.random.BitGenerator) else bit_generator(reader, source)
    return np.random.RandomState(made)


def generator(reader: Any, source: Any = "MT19937", _maker: Any = None) -> Any:
    """``numpy.random._pickle.__generator_ctor``, likewise."""
    made = source if isinstance(source, np.random.BitGenerator) else bit_generator(reader, source)
    return np.random.Generator(made)


def new_index(_reader: Any, kind: Any, arguments: Any) -> Any:
    """``pandas``' functions that make an index: only of an index class."""
    import pandas as pd
    from pandas.core.indexes import base, datetimes

    _require(isinstance(kind, type) and issubclass(kind, pd.Index) and type(arguments) is dict, "an index")
    if issubclass(kind, pd.DatetimeIndex):
        return datetimes._new_DatetimeIndex(kind, arguments)  # type: ignore[attr-defined]
    if issubclass(kind, pd.IntervalIndex):
        return kind.from_arrays(**arguments)
    return base._new_Index(kind, arguments)  # type: ignore[attr-defined]


def method(_reader: Any, owner: Any, name: Any) -> Any:
    """``getattr``: an object's method for predicting, a listed one of a class, or an enumeration's member."""
    if isinstance(owner, type) and issubclass(owner, Enum) and name in owner.__members__:
        return owner.__members__[name]
    if isinstance(owner, type) and f"{owner.__module__}.{owner.__qualname__}.{name}" in _CLASS_METHODS:
        return getattr(owner, name)
    _require(name in _METHODS and not isinstance(owner, type | types.ModuleType), f"the attribute {str(name)[:60]!r}")
    found = getattr(owner, name)
    _require(isinstance(found, types.MethodType) and found.__self__ is owner, f"the attribute {name!r}")
    return found


def type_of(_reader: Any, thing: Any) -> Any:
    """``type``: of None, NotImplemented and Ellipsis."""
    _require(thing is None or thing is NotImplemented or thing is Ellipsis, "a type")
    return type(thing)


def _plain_collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    def made(_reader: Any, items: Any = ()) -> Any:
        _require(type(items) in (list, tuple, dict, set, frozenset), f"a {kind.__name__}")
        return kind(items)

    return made


def double_ended(_reader: Any, items: Any = (), most: Any = None) -> Any:
    """``collections.deque``."""
    _require(type(items) in (list, tuple) and (most is None or type(most) is int), "a deque")
    return deque(items, most)


def complex_number(_reader: Any, real: Any, imaginary: Any) -> Any:
    """``complex``."""
    _require(type(real) is float and type(imaginary) is float, "a complex number")
    return complex(real, imaginary)


def integers(kind: Callable[..., Any]) -> Callable[..., Any]:
    """``slice`` and ``range``."""

    def made(_reader: Any, *args: Any) -> Any:
        _require(all(arg is None or isinstance(arg, int | str | float | np.generic) for arg in args), kind.__name__)
        return kind(*args)

    return made


def some_bytes(_reader: Any, *args: Any) -> Any:
    """``bytes``: the empty ones, which protocols 0 to 2 write so."""
    _require(not args, "bytes")
    return b""


def byte_array(_reader: Any, content: Any = b"", encoding: Any = None) -> Any:
    """``bytearray``."""
    _require(type(content) is bytes or (type(content) is str and encoding == "latin-1"), "a bytearray")
    return bytearray(content, "latin-1") if isinstance(content, str) else bytearray(content)


def encoded(_reader: Any, text: Any, encoding: Any) -> Any:
    """``_codecs.encode``: bytes, in protocols 0 to 2."""
    _require(type(text) is str and encoding == "latin1", "bytes")
    return text.encode("latin1")


def default_dict(_reader: Any, factory: Any = None, *items: Any) -> Any:
    """``collections.defaultdict`` of a builtin type."""
    factory = set if isinstance(factory, Rebuilt) and factory.name == "builtins.set" else factory
    _require(factory is None or factory in _FACTORIES, "a dict with defaults")
    return defaultdict(factory, *items)


def zone(_reader: Any, key: Any, from_cache: Any = True) -> Any:
    """``zoneinfo.ZoneInfo._unpickle``."""
    import zoneinfo

    _require(type(key) is str and re.fullmatch(r"[A-Za-z0-9_+/-]+", key), "a time zone")
    return zoneinfo.ZoneInfo(key)


def numba_function(_reader: Any, serialized: Any, *_rest: Any) -> Any:
    """A function that was compiled by Numba, of which the pickle holds the bytecode: the installed one of its name.

    The bytecode is never made a function. shap's link functions are the only ones in genuine explainers; any other
    becomes an object that cannot be called.
    """
    from batch_explain.explainers.skeleton import skeleton_of

    _require(type(serialized) is bytes, "a compiled function")
    for node in skeleton_of(serialized).walk():
        if isinstance(node, dict) and node.get("__module__") == "shap.links" and node.get("__qualname__") in _LINKS:
            import shap.links

            return getattr(shap.links, node["__qualname__"])
    return UnopenedFunction()


class UnopenedFunction:
    """A compiled function that is not opened, because its bytecode might do anything."""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": encoded,
    "builtins.bytearray": byte_array,
    "builtins.bytes": some_bytes,
    "builtins.complex": complex_number,
    "builtins.frozenset": _plain_collection(frozenset),
    "builtins.getattr": method,
    "builtins.range": integers(range),
    "builtins.set": _plain_collection(set),
    "builtins.slice": integers(slice),
    "builtins.type": type_of,
    "collections.Counter": _plain_collection(Counter),
    "collections.defaultdict": default_dict,
    "collections.deque": double_ended,
    "numba.core.serialize._numba_unpickle": lambda reader, _address, content, *_: numba_function(reader, content),
    "numba.core.serialize._unpickle__CustomPickled": numba_function,
    "numba.core.serialize.custom_rebuild": lambda _reader, function: function,
    "numpy.core._ufunc_reconstruct": ufunc,
    "numpy.core.multiarray._reconstruct": empty_array,
    "numpy.core.multiarray.scalar": scalar,
    "numpy.core.numeric._frombuffer": from_buffer,
    "numpy.dtype": dtype,
    "numpy.ma.core._mareconstruct": masked_array,
    "numpy.random._pickle.__bit_generator_ctor": bit_generator,
    "numpy.random._pickle.__generator_ctor": generator,
    "numpy.random._pickle.__randomstate_ctor": random_state,
    "pandas.core.indexes.base._new_Index": new_index,
    "pandas.core.indexes.datetimes._new_DatetimeIndex": new_index,
    "pandas.core.indexes.interval._new_IntervalIndex": new_index,
    "pandas.core.indexes.timedeltas._new_TimedeltaIndex": new_index,
    "zoneinfo.ZoneInfo._unpickle": zone,
}
