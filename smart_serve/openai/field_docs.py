"""What a type says of its fields: the string that follows a field in the class's source."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache


def field_docs(kind: type) -> dict[str, str]:
    """By field name, those of its bases included, each as one line; fields without one are left
    out."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ in sys.modules and base.__module__ != "builtins":
            docs.update(_docs_of_module(base.__module__).get(base.__qualname__, {}))
    return docs


@cache
def _docs_of_module(name: str) -> dict[str, dict[str, str]]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):
        return {}  # a module of C, or one that is installed without its source
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return {node.name: _docs_of_class(node) for node in classes}


def _docs_of_class(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = " ".join(doc.split())
    return docs
