"""Documents made of the standard library of the running Python: its docstrings and its code."""

import ast
import inspect
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmnoise.data.names import Document

# What a module is for, by the chapters of the library's manual, joined until each family has
# several hundred functions. Modules that the table leaves out are small and in no family, or are
# tables in the form of code (`encodings`); their documents have no label.
FAMILIES = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors signal subprocess "
    "threading _threading_local contextvars",
    "debugging": "bdb cProfile doctest pdb profile pstats pydoc timeit trace traceback "
    "tracemalloc unittest",
    "files": "bz2 dbm filecmp fileinput fnmatch genericpath glob gzip lzma _compression ntpath "
    "nturl2path os pathlib pickle pickletools posixpath shelve shutil sqlite3 stat tarfile "
    "tempfile zipfile _pyio io",
    "graphics": "curses idlelib tkinter turtle turtledemo colorsys",
    "internet": "ftplib http imaplib ipaddress nntplib poplib smtplib socket socketserver ssl "
    "telnetlib urllib webbrowser wsgiref xmlrpc",
    "language": "abc ast code codeop compileall dataclasses dis enum importlib inspect lib2to3 "
    "modulefinder opcode pkgutil py_compile pyclbr runpy symtable tabnanny token tokenize types "
    "typing zipimport",
    "numbers": "calendar datetime _pydatetime decimal _pydecimal fractions numbers random "
    "statistics zoneinfo _strptime",
    "records": "base64 configparser csv email html json mailbox mailcap mimetypes netrc plistlib "
    "quopri tomllib uu xdrlib xml _markupbase",
    "structures": "bisect collections _collections_abc copy copyreg functools graphlib heapq "
    "operator pprint reprlib weakref _weakrefset contextlib codecs difflib re sre_compile "
    "sre_constants sre_parse shlex string stringprep textwrap",
    "system": "argparse cmd crypt ctypes getopt getpass hashlib hmac locale gettext logging "
    "optparse platform pty secrets site sysconfig tty uuid venv warnings ensurepip",
}
_FAMILY = {module: family for family, modules in FAMILIES.items() for module in modules.split()}
_MIN_LINES = 3  # of a function's source; shorter ones say little
_MIN_CHARACTERS = 20  # of an answer
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_docstrings(roots: Sequence[Path]) -> Iterator[Document]:
    """The docstrings of each module, in file order."""
    del roots
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module, tree, _ in _modules():
        if module.startswith("_"):
            continue
        strings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        strings = [inspect.cleandoc(text) for text in strings if text]
        if strings:
            yield Document(module, "\n\n".join(strings) + "\n")


def read_code(roots: Sequence[Path]) -> Iterator[Document]:
    """The source of a function or class a document, without indentation.

    Of a class that defines methods, each method is one. Copies are left out. The label is the
    family of the module (see `FAMILIES`).
    """
    del roots
    seen = set()
    for module, tree, source in _modules():
        lines = source.splitlines(keepends=True)
        for name, node in _definitions(tree):
            if isinstance(node, ast.ClassDef) and _methods(node):
                continue
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            # Not `textwrap.dedent`: lines inside a string may begin further left.
            indent = re.compile(f" {{0,{node.col_offset}}}")
            text = "".join(x[indent.match(x).end() :] for x in lines[first - 1 : node.end_lineno])
            if text.count("\n") >= _MIN_LINES and text not in seen:
                seen.add(text)
                yield Document(f"{module}:{name}:{node.lineno}", text, _label(module))


def read_questions(roots: Sequence[Path]) -> Iterator[Document]:
    """A question on a function or class and its answer a document: signature and docstring.

    The answer is the docstring's first paragraph. The question does not name the module, whose
    family (see `FAMILIES`) is the label. Of several questions with one answer the first stays:
    else the answer could stand on both sides of a split.
    """
    del roots
    seen = set()
    for module, tree, _ in _modules():
        for name, node in _definitions(tree):
            paragraphs = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
            answer = " ".join(paragraphs[0].split())
            text = f"Question: {_question(name, node)}\nAnswer: {answer}\n"
            if len(answer) >= _MIN_CHARACTERS and answer not in seen:
                seen.add(answer)
                yield Document(f"{module}:{name}:{node.lineno}", text, _label(module))


def _question(name: str, node: _Function | ast.ClassDef) -> str:
    owner, _, own = name.rpartition(".")
    if isinstance(node, ast.ClassDef):
        return f"What is the class {own} for?"
    call = f"{own}({ast.unparse(node.args)})"
    return f"What does the method {call} of {owner} do?" if owner else f"What does {call} do?"


def _definitions(tree: ast.Module) -> Iterator[tuple[str, _Function | ast.ClassDef]]:
    """The functions and classes of a module and the methods of its classes, by qualified name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, node
            yield from ((f"{node.name}.{method.name}", method) for method in _methods(node))
        elif isinstance(node, _Function):
            yield node.name, node


def _methods(node: ast.ClassDef) -> list[_Function]:
    return [child for child in node.body if isinstance(child, _Function)]


def _modules() -> Iterator[tuple[str, ast.Module, str]]:
    """Name, syntax tree and source of each module that is not a test."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or {"test", "tests", "idle_test"} & set(parts):
            continue
        with tokenize.open(file) as stream:
            source = stream.read()
        yield ".".join(parts), ast.parse(source), source


def _label(module: str) -> str:
    return _FAMILY.get(module.partition(".")[0], "")
