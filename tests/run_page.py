"""Runs the Python of a page of docs/ from top to bottom, as one session: ``python tests/run_page.py page.md``.

A block is a program, or a session with ``>>>`` whose output must be as shown. The page ends early at the first block
that imports a library which is not installed; its name is printed.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def missing_libraries(source):
    """Those that a program imports and that are not there."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return sorted({name for name in (name.partition(".")[0] for name in names) if not importlib.util.find_spec(name)})


def run(page):
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        block, line = match.group(1), text.count("\n", 0, match.start(1))
        session = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), line)
        source = "".join(example.source for example in session.examples) or block
        if missing := missing_libraries(source):
            print("needs", *missing)
            return 0
        if session.examples:
            session.globs = names
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            if doctest.DocTestRunner(optionflags=flags).run(session, clear_globs=False).failed:
                return 1
        else:
            exec(compile("\n" * line + block, str(page), "exec"), names)
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
