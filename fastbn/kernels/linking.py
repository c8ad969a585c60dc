"""What compiled code calls, compiled as far as callers can link it: once optimised, once machine code, in the caller.

Numba optimises every function and makes machine code of it, and links it into its callers, where all of this is done
once more; to the body of a ``prange``, and to the two wrappers of one, it happens four times in one kernel. A forward
and a backward are made of some ninety such functions, four or five deep. Python calls the outermost alone
(``EntryCompiler``), so what lies inside (``LinkedCompiler``) is left as it is written: NCHW compiles in 0.65 of the
time, NHWC, 19 s, in half, and the instructions of the inner loops are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import BaseNativeLowering, NativeLowering, NativeParforLowering


class _LinkedLibrary(JITCodeLibrary):
    """The code of a function, as it is written and ready to be linked.

    It is optimised on its own, and given to the engine that makes machine code, when somebody asks for its address.
    """

    _has_address = False

    def _optimize_final_module(self) -> None:
        """Callers do it."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """The address of a function, 0 if there is none of that name."""
        self._ensure_finalized()
        if not self._has_address:
            self._has_address = True
            super()._optimize_final_module()
            super()._finalize_final_module()
        return int(super().get_pointer_to_function(name))


@contextlib.contextmanager
def _libraries_to_link(codegen: Any) -> Iterator[None]:
    """Give a ``prange`` and its wrappers such libraries; Numba's lock on the compiler is held meanwhile."""
    given, codegen._library_class = codegen._library_class, _LinkedLibrary
    try:
        yield
    finally:
        codegen._library_class = given


class _ToLink(BaseNativeLowering):
    """For what compiled code calls."""

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        state.flags.no_compile = True
        with _libraries_to_link(codegen):
            state.library = codegen.create_library(state.func_id.func_qualname)
            super().run_pass(state)
        state.library.finalize()
        lowered = state.cr
        name = lowered.fndesc.qualname
        # What callers know it by. It has no address: Python must not call it.
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=entry)
        return True


class _ToCall(BaseNativeLowering):
    """For what Python calls."""

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        state.library = codegen.create_library(state.func_id.func_qualname)
        state.library.enable_object_caching()
        with _libraries_to_link(codegen):
            return bool(super().run_pass(state))


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringToLink(_ToLink, NativeLowering):
    _name = "native_lowering_to_link"


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParforLoweringToLink(_ToLink, NativeParforLowering):
    _name = "native_parfor_lowering_to_link"


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringToCall(_ToCall, NativeLowering):
    _name = "native_lowering_to_call"


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParforLoweringToCall(_ToCall, NativeParforLowering):
    _name = "native_parfor_lowering_to_call"


class _Compiler(Compiler):
    """Numba's own but for the last step of lowering."""

    _instead: dict[Any, Any]

    def define_pipelines(self) -> list[Any]:
        (pipeline,) = super().define_pipelines()
        pipeline.passes = [(self._instead.get(each, each), description) for each, description in pipeline.passes]
        return [pipeline]


class LinkedCompiler(_Compiler):
    """Compiles what compiled code calls, and Python must not."""

    _instead = {NativeLowering: _LoweringToLink, NativeParforLowering: _ParforLoweringToLink}  # noqa: RUF012


class EntryCompiler(_Compiler):
    """Compiles what Python calls."""

    _instead = {NativeLowering: _LoweringToCall, NativeParforLowering: _ParforLoweringToCall}  # noqa: RUF012
