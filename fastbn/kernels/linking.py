"""What compiled code calls, compiled as far as callers can link it: once optimised, once machine code, in the caller.

Numba optimises every function and makes machine code of it, and links it into its callers, where all of this is done
once more; to the body of a ``prange``, and to the two wrappers of one, it happens four times in one kernel. A forward
and a backward are made of some hundred such functions, four or five deep. Python calls the outermost alone
(``EntryCompiler``), so what lies inside (``LinkedDispatcher``) is left as it is written: NCHW compiled in 0.65 of the
time, NHWC, 19 s, in half, and the instructions of the inner loops are the same. With each function linked once, not
once a caller, no passes that nothing is written for, and none compiled for single numbers, NHWC takes 0.86 of what was
left; with signatures that are remembered (``signatures``), no timers and no ``np.empty``, NHWC 0.85 and NCHW 0.87 of
that. Without LLVM's passes over each function as well it compiled no faster (0.98), and backward of 8x2048x7x7 took
1.06 times as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from numba import _dynfunc, types
from numba.core import sigutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import BaseNativeLowering, NativeLowering, NativeParforLowering

from fastbn.kernels.signatures import Remembering


class _LinkedLibrary(JITCodeLibrary):
    """The code of a function as it is written, with nothing of what it calls.

    What that is, its caller links as well: each function once, however many others call it. It is optimised on its own,
    and given to the engine that makes machine code, when somebody asks for its address.
    """

    _has_address = False
    _linking_libraries: list[Any]

    def finalize(self) -> None:
        """Let nothing be added any more."""
        self._raise_if_finalized()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """The address of a function, 0 if there is none of that name."""
        self._ensure_finalized()
        with global_compiler_lock:
            if not self._has_address:
                self._has_address = True
                self._finalized = False
                self._linking_libraries = _all_of(self._linking_libraries)
                super().finalize()
        return int(super().get_pointer_to_function(name))


class _CalledLibrary(JITCodeLibrary):
    """A function's code with everything that it calls, at whatever depth, as one module."""

    _linking_libraries: list[Any]

    def finalize(self) -> None:
        """Link, optimise and make machine code."""
        self._linking_libraries = _all_of(self._linking_libraries)
        super().finalize()


def _all_of(libraries: Iterable[Any]) -> list[Any]:
    """These libraries and those that they are to be linked with.

    Callers come before what they call, as LLVM's linker leaves out what nothing has asked for yet.
    """
    found: dict[Any, None] = {}

    def visit(library: Any) -> None:
        if library not in found:
            for called in library._linking_libraries if isinstance(library, _LinkedLibrary) else ():
                visit(called)
            found[library] = None

    for library in libraries:
        visit(library)
    return list(found)[::-1]


@contextlib.contextmanager
def _libraries_to_link(codegen: Any) -> Iterator[None]:
    """Give a ``prange`` and its wrappers such libraries; Numba's lock on the compiler is held meanwhile."""
    given, codegen._library_class = codegen._library_class, _LinkedLibrary
    try:
        yield
    finally:
        codegen._library_class = given


class _Lowering(BaseNativeLowering):
    """Makes a function's library, but neither of it nor of what it is made of an address."""

    def run_pass(self, state: Any) -> bool:
        state.flags.no_compile = True
        with _libraries_to_link(state.targetctx.codegen()):
            return bool(super().run_pass(state))

    def known(self, state: Any, executable: Any) -> None:
        """What callers, and Python, know the function by."""
        lowered = state.cr
        state.targetctx.insert_user_function(executable, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=executable)


class _ToLink(_Lowering):
    """For what compiled code calls."""

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        super().run_pass(state)
        state.library.finalize()
        lowered = state.cr
        name, module = lowered.fndesc.qualname, lowered.fndesc.lookup_module()
        # It has no address: Python must not call it.
        self.known(state, _dynfunc.make_function(module, name, "", 0, lowered.env, (state.library,)))
        return True


class _ToCall(_Lowering):
    """For what Python calls."""

    def run_pass(self, state: Any) -> bool:
        state.library = _CalledLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        super().run_pass(state)
        lowered = state.cr
        self.known(state, state.targetctx.get_executable(state.library, lowered.fndesc, lowered.env))
        state.reload_init.extend(state.library._reload_init)
        return True


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


_NEEDLESS = {
    "WithLifting",
    "InlineClosureLikes",
    "RewriteDynamicRaises",
    "MakeFunctionToJitFunction",
    "InlineInlinables",
    "FindLiterallyCalls",
    "LiteralUnroll",
    "LiteralPropagationSubPipelinePass",
    "InlineOverloads",
    "NopythonRewrites",
    "DumpParforDiagnostics",
}
"""Passes for what no kernel is written with: ``with``, closures, ``literally``, expressions of arrays. After most of
them Numba looks at every variable's uses again."""


class _Compiler(Compiler):
    """Numba's own without the passes that are needless, and with another last step of lowering."""

    _instead: dict[Any, Any]

    def __init__(self, typingctx: Any, *rest: Any) -> None:
        super().__init__(typingctx, *rest)
        self.state.typingctx = Remembering(typingctx)

    def define_pipelines(self) -> list[Any]:
        (pipeline,) = super().define_pipelines()
        needless = set() if self.state.flags.auto_parallel.enabled else _NEEDLESS  # a prange is made with some of them
        kept = [(each, description) for each, description in pipeline.passes if each.__name__ not in needless]
        pipeline.passes = [(self._instead.get(each, each), description) for each, description in kept]
        return [pipeline]


class LinkedCompiler(_Compiler):
    """Compiles what compiled code calls."""

    _instead = {NativeLowering: _LoweringToLink, NativeParforLowering: _ParforLoweringToLink}  # noqa: RUF012


class EntryCompiler(_Compiler):
    """Compiles what Python calls."""

    _instead = {NativeLowering: _LoweringToCall, NativeParforLowering: _ParforLoweringToCall}  # noqa: RUF012


class LinkedDispatcher(CPUDispatcher):
    """A function that compiled code calls, and Python must not.

    A number that is written in the source is to it as any other, where Numba would compile the function for that alone.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        options = {"nopython": True, "boundscheck": None, **options}  # as njit
        super().__init__(function, targetoptions=options, pipeline_class=LinkedCompiler)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """How it is called with arguments of these types."""
        return super().get_call_template(tuple(types.unliteral(each) for each in args), kws)

    def compile(self, sig: Any) -> Any:
        """Compile for arguments of these types, unless that is done.

        Without Numba's timers: those of all callers listen to each call of LLVM, of which there are thousands.
        """
        args, return_type = sigutils.normalize_signature(sig)
        if tuple(args) not in self.overloads:
            self.add_overload(self._compiler.compile(args, return_type))
        return self.overloads[tuple(args)].entry_point

    def add_overload(self, cres: Any) -> None:
        """Keep what is compiled, but not where Python looks for it: it has no address."""
        self.overloads[tuple(cres.signature.args)] = cres

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:  # noqa: ARG002
        raise TypeError(f"{self.py_func.__name__} is for compiled code to call")
