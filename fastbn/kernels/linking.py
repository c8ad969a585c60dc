"""Functions that kernels call, compiled as far as LLVM's optimiser.

Numba makes machine code of every function that it compiles, also of those that it links into their callers, in whose
machine code they are once more. Where Python does not call a function, the first is never run. A forward and a backward
are made of some sixty such functions: without it, and without wrappers for Python, they compile in 0.8 of the time.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _LinkedLibrary(JITCodeLibrary):
    """The code of a function, optimised and ready to be linked, but not given to the engine that makes machine code."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LoweringToLink(NativeLowering):
    _name = "native_lowering_to_link"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        state.library.finalize()
        lowered = state.cr
        name = lowered.fndesc.qualname
        # What callers know it by. It has no address: Python must not call it.
        entry = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=entry)
        return True


class LinkedCompiler(Compiler):
    """Compiles what Python does not call."""

    def define_pipelines(self) -> list[Any]:
        """Numba's own but for the last step of lowering."""
        (pipeline,) = super().define_pipelines()
        pipeline.passes = [
            (_LoweringToLink, description) if each is NativeLowering else (each, description)
            for each, description in pipeline.passes
        ]
        return [pipeline]
