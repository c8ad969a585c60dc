"""Python objects as compiled code sees them: looked at where they lie, instead of unboxed.

To unbox an array takes 50 ns, to look at its fields takes one. So a function all of whose arguments are of the type
``Given`` can check them itself, and an ordinary call with ten of them costs a tenth of a microsecond instead of one
for Numba's dispatcher and several for checks in Python. It must hold the interpreter's lock while it looks; ``release``
gives that to other threads for as long as the work on many values takes.

The fields are those that NumPy's and Python's C headers give to every extension module; ``KNOWN`` says whether they are
where they are expected.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, models, register_model, unbox

from fastbn.kernels.addresses import instruction

CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400
"""Bits of ``flags``."""

NOT_AN_INDEX = -(2**63)
"""What ``index`` gives for anything but an ordinary ``int``."""

RELEASED = 1 << 14
"""Values from which others get the lock: some 4 us of work, where to give it away and take it back costs 40 ns."""

_WORD = ctypes.sizeof(ctypes.c_void_p)
_HEADER = object.__basicsize__
_TYPE = _HEADER - _WORD
_DATA, _NDIM, _DIMENSIONS, _STRIDES, _, _DTYPE, _FLAGS = range(_HEADER, _HEADER + 7 * _WORD, _WORD)
_BYTE_ORDER = _HEADER + _WORD + 2  # of a dtype, whose scalar type comes first
_NATIVE = ord("=")
_OBJECTS = {
    "none": None,
    "int": int,
    "float": float,
    "ndarray": np.ndarray,
    "float32": np.float32,
    "float64": np.float64,
}

for _name, _object in _OBJECTS.items():  # names, as compiled code is kept between processes
    llvmlite.binding.add_symbol(f"fastbn_{_name}", id(_object))


def _fields_are_known() -> bool:
    probe, number = np.zeros((3, 5), np.float32)[::2, :4], 1.5

    def field(offset: int, kind: Any = ctypes.c_ssize_t, of: object = probe) -> Any:
        return kind.from_address(id(of) + offset).value

    def fields(offset: int) -> list[int]:
        return list((ctypes.c_ssize_t * 2).from_address(field(offset)))

    return (
        (field(_TYPE), field(_TYPE, of=number)) == (id(np.ndarray), id(float))
        and (field(_DATA), field(_DTYPE)) == (probe.ctypes.data, id(probe.dtype))
        and (field(_HEADER, of=probe.dtype), field(_BYTE_ORDER, ctypes.c_char, probe.dtype)) == (id(np.float32), b"=")
        and field(_BYTE_ORDER, ctypes.c_char, probe.dtype.newbyteorder()) != b"="
        and (field(_NDIM, ctypes.c_int), field(_FLAGS, ctypes.c_int)) == (2, probe.flags.num)
        and (fields(_DIMENSIONS), fields(_STRIDES)) == ([2, 4], list(probe.strides))
        and [field(_HEADER, ctypes.c_double, kind(number)) for kind in (float, np.float64)] == [number, number]
    )


KNOWN = _fields_are_known()


class Given(types.Type):
    """Numba's type of a Python object; if it is an array that is asked for, one of ``dtype``."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Given({dtype})")


@register_model(Given)
class _GivenModel(models.OpaqueModel):
    pass


@unbox(Given)
def _unbox(given: Any, value: Any, context: Any) -> Any:
    return NativeValue(value)  # the caller holds a reference


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    index = ir.Constant(ir.IntType(64), offset)
    return builder.load(builder.bitcast(builder.gep(address, [index]), kind.as_pointer()))


def _intp(context: Any) -> Any:
    return context.get_value_type(types.intp)


def _is(context: Any, builder: Any, pointer: Any, name: str) -> Any:
    """Whether a pointer is that of one of ``_OBJECTS``."""
    symbol = context.get_python_api(builder).get_c_object(f"fastbn_{name}")
    return builder.icmp_unsigned("==", pointer, builder.bitcast(symbol, pointer.type))


def _has_type(context: Any, builder: Any, value: Any, name: str) -> Any:
    return _is(context, builder, _at(builder, value, _TYPE, value.type), name)


def _kind(value: Any) -> int:
    if type(value) is not np.ndarray or not value.dtype.isnative:
        return 0
    return {np.float32: 1, np.float64: 2}.get(value.dtype.type, 0)


def _is_float(context: Any, builder: Any, array: Any, name: str) -> Any:
    """Whether an array's dtype is this one. There may be several equal ones: a pickled array brings its own."""
    dtype = _at(builder, array, _DTYPE, array.type)
    native = builder.icmp_unsigned("==", _at(builder, dtype, _BYTE_ORDER, ir.IntType(8)), ir.IntType(8)(_NATIVE))
    return builder.and_(native, _is(context, builder, _at(builder, dtype, _HEADER, array.type), name))


@instruction(_kind)
def kind_of(typingctx: Any, value: Any) -> Any:
    """1 and 2 for plain arrays of float32 and float64, 0 for everything else."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero, one, two = (ir.Constant(_intp(context), number) for number in range(3))
        result = cgutils.alloca_once_value(builder, zero)
        with builder.if_then(_has_type(context, builder, args[0], "ndarray")):
            other = builder.select(_is_float(context, builder, args[0], "float64"), two, zero)
            builder.store(builder.select(_is_float(context, builder, args[0], "float32"), one, other), result)
        return builder.load(result)

    return types.intp(value), codegen


@instruction(lambda value: _kind(value) > 0)
def is_expected(typingctx: Any, value: Any) -> Any:
    """Whether it is a plain array of the dtype that the code was compiled for; interpreted, of either dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = cgutils.alloca_once_value(builder, cgutils.false_bit)
        with builder.if_then(_has_type(context, builder, args[0], "ndarray")):
            builder.store(_is_float(context, builder, args[0], str(value.dtype)), result)
        return builder.load(result)

    return types.boolean(value), codegen


@instruction(lambda value: value is None)
def is_none(typingctx: Any, value: Any) -> Any:
    """Whether it is ``None``."""
    return types.boolean(value), lambda context, builder, sig, args: _is(context, builder, args[0], "none")


def _field(offset: int, interpreted: Any, doc: str) -> Any:
    """What an array's header says in one word."""

    def typing(typingctx: Any, array: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            short = offset in (_NDIM, _FLAGS)
            value = _at(builder, args[0], offset, ir.IntType(32) if short else _intp(context))
            return builder.sext(value, _intp(context)) if short else value

        return types.intp(array), codegen

    typing.__doc__ = doc
    return instruction(interpreted)(typing)


ndim = _field(_NDIM, lambda array: array.ndim, "The number of dimensions.")
flags = _field(_FLAGS, lambda array: array.flags.num, "What is known of an array's memory, bit by bit.")
address = _field(_DATA, lambda array: array.ctypes.data, "Where an array's first value lies.")


def _item(offset: int, interpreted: Any, doc: str) -> Any:
    """One of the numbers that a word of an array's header points to."""

    def typing(typingctx: Any, array: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            numbers = _at(builder, args[0], offset, _intp(context).as_pointer())
            return builder.load(builder.gep(numbers, [args[1]]))

        return types.intp(array, types.intp), codegen

    typing.__doc__ = doc
    return instruction(interpreted)(typing)


dim = _item(_DIMENSIONS, lambda array, i: array.shape[i], "An array's length along one dimension.")
stride = _item(_STRIDES, lambda array, i: array.strides[i], "An array's stride along one dimension, in bytes.")


@instruction(lambda array: array.itemsize)
def itemsize(typingctx: Any, array: Any) -> Any:
    """Bytes of a value."""
    size = array.dtype.bitwidth // 8
    return types.intp(array), lambda context, builder, sig, args: ir.Constant(_intp(context), size)


def _flat(array: Any, start: int, size: int) -> Any:
    return np.lib.stride_tricks.as_strided(array, (start + size,), (array.itemsize,))[start:]


def _values(of: Any, doc: str) -> Any:
    def typing(typingctx: Any, array: Any, start: Any, size: Any) -> Any:
        dtype = of or array.dtype
        result = types.Array(dtype, 1, "C")

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = context.get_data_type(dtype)
            step = ir.Constant(_intp(context), dtype.bitwidth // 8)
            made = context.make_array(result)(context, builder)
            first = builder.gep(_at(builder, args[0], _DATA, element.as_pointer()), [args[1]])
            context.populate_array(made, data=first, shape=[args[2]], strides=[step], itemsize=step, meminfo=None)
            return made._getvalue()

        return result(array, types.intp, types.intp), codegen

    typing.__doc__ = doc
    return instruction(_flat)(typing)


flat = _values(
    None, "``size`` values of a dense array, from number ``start`` in the order of memory on, as Numba's own array."
)
floats = _values(types.float32, "The same of an array whose kind is 1,")
doubles = _values(types.float64, "and 2, whatever is expected.")


def _index(value: Any) -> int:
    return value if type(value) is int and abs(value) < 2**63 else NOT_AN_INDEX


def _as_index(context: Any, builder: Any, value: Any) -> Any:
    api = context.get_python_api(builder)
    nothing = ir.Constant(_intp(context), NOT_AN_INDEX)
    result = cgutils.alloca_once_value(builder, nothing)
    with builder.if_then(_has_type(context, builder, value, "int")):
        number = api.long_as_longlong(value)
        failed = builder.icmp_unsigned("!=", api.err_occurred(), context.get_constant_null(types.voidptr))
        with builder.if_then(failed, likely=False):
            api.err_clear()
        builder.store(builder.select(failed, nothing, number), result)
    return builder.load(result)


@instruction(_index)
def index(typingctx: Any, value: Any) -> Any:
    """An ordinary ``int`` that is not huge; ``NOT_AN_INDEX`` for everything else."""
    return types.intp(value), lambda context, builder, sig, args: _as_index(context, builder, args[0])


@instruction(lambda value: float(value) if type(value) in (float, np.float64) else float(_index(value)))
def number(typingctx: Any, value: Any) -> Any:
    """An ordinary ``float``, or NumPy's, which has the same fields, or what ``index`` says: else far below zero."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        double = ir.DoubleType()
        result = cgutils.alloca_once(builder, double)
        kinds = [_has_type(context, builder, args[0], name) for name in ("float", "float64")]
        with builder.if_else(builder.or_(*kinds)) as (ordinary, otherwise):
            with ordinary:
                builder.store(_at(builder, args[0], _HEADER, double), result)
            with otherwise:
                builder.store(builder.sitofp(_as_index(context, builder, args[0]), double), result)
        return builder.load(result)

    return types.float64(value), codegen


@instruction(lambda size: None)
def release(typingctx: Any, size: Any) -> Any:
    """Give other threads the interpreter's lock for work on so many values; to be followed by ``acquire``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        result = cgutils.alloca_once_value(builder, context.get_constant_null(types.voidptr))
        long = builder.icmp_signed(">=", args[0], ir.Constant(_intp(context), RELEASED))
        with builder.if_then(long):
            builder.store(context.get_python_api(builder).save_thread(), result)
        return builder.load(result)

    return types.voidptr(types.intp), codegen


@instruction(lambda state: None)
def acquire(typingctx: Any, state: Any) -> Any:
    """Take back what ``release`` gave."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        released = builder.icmp_unsigned("!=", args[0], context.get_constant_null(types.voidptr))
        with builder.if_then(released):
            context.get_python_api(builder).restore_thread(args[0])
        return context.get_dummy_value()

    return types.void(types.voidptr), codegen
