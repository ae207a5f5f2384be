"""The rules of docs/contributing.md ("Rules of the house") that a program can check."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "schemas", "runtime", "ingest", "streams", "projections", "gateway", "sandbox")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
MODULES_MAX = 14

VAGUE_NAMES = frozenset(
    {"said", "told", "found", "held", "kept", "one", "made", "words", "wanted", "where", "at", "what"}
)
"""Names that do not name the content of a variable."""

VAGUE_OPENERS = re.compile(r"(What|Who|Whose|Whether|Where|When|How|Those|All that)\b")
"""First words of a sentence that is a fragment without its neighbour."""

NOT_A_VERB = re.compile(r"(The|A|An|One|All|Each|Every|It|Its|This|That|These|No|None|Of|In|On|By|As|From|For|If)\b")
"""First words of a function's docstring that are no imperative verb; ruff's D401 checks the verbs."""

HUMAN_VERBS = re.compile(r"\b(says|said|tells|told|hears|knows|wants|wanted|looks at|is looked|stands)\b")
"""Verbs of people: programs read, write, return, append, claim, release, skip and retry."""

ENTRY_POINTS = frozenset(
    {"cli.__main__", "projections.rebuild.worker", "ingest.app", "streams.app", "projections.app", "gateway.app"}
)
"""Modules that are run, or imported by name: cli.main starts the stages."""

SHARED_NAMES = frozenset({"app", "metrics", "__init__"})
"""Module names that each stage has by convention."""


def modules() -> dict[str, Path]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(paths)
    }


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in modules().items():
        yield name, ast.parse(path.read_text("utf-8"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the variables and arguments of a module; a field of a class is none, since Avro schemas name it."""
    fields = {
        id(node.target)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        code, mark, text = line.partition("# ")
        if mark and code.count('"') % 2 == 0:
            yield number, text


def attribute_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the strings that document a constant or a field."""
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None),):
            if not isinstance(body, list):
                continue
            for before, after in pairwise(body):
                if (
                    isinstance(before, ast.Assign | ast.AnnAssign)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                ):
                    yield after.lineno, after.value.value


def test_variables_name_their_content() -> None:
    wrong = [
        f"{name}:{line} {word}" for name, tree in trees() for word, line in bound_names(tree) if word in VAGUE_NAMES
    ]

    assert wrong == []


def test_a_docstring_of_a_function_starts_with_a_verb() -> None:
    wrong = [
        f"{name}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}"
        for name, tree in trees()
        for node, text in docstrings(tree)
        if VAGUE_OPENERS.match(text)
        or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            and NOT_A_VERB.match(text)
        )
    ]

    assert wrong == []


def test_the_text_of_a_constant_is_no_fragment() -> None:
    texts = [(name, line, text) for name, tree in trees() for line, text in attribute_docstrings(tree)]

    assert [f"{name}:{line} {text}" for name, line, text in texts if VAGUE_OPENERS.match(text)] == []


def test_programs_and_rows_are_not_people() -> None:
    texts = [
        (f"{name}:{line}", text)
        for name, path in modules().items()
        for tree in [ast.parse(path.read_text("utf-8"))]
        for line, text in [
            *((getattr(node, "lineno", 1), text) for node, text in docstrings(tree)),
            *attribute_docstrings(tree),
            *comments(path),
        ]
    ]

    assert [f"{place} {match[0]}" for place, text in texts if (match := HUMAN_VERBS.search(text))] == []


def test_no_module_name_is_in_two_packages_beside_each_other() -> None:
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, path in modules().items():
        *parents, package, module = ["", *name.split(".")]
        if parents and path.name != "__init__.py" and module not in SHARED_NAMES:
            places[".".join(parents), module].add(package)

    assert {key: sorted(packages) for key, packages in places.items() if len(packages) > 1} == {}


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}

    assert {name: length for name, length in lengths.items() if length > MODULE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    wrong = {
        f"{name}.{node.name}": length
        for name, tree in trees()
        for node in functions(tree)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert wrong == {}


def test_packages_are_small() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for path in modules().values():
        if path.name != "__init__.py":
            sizes[path.parent.relative_to(ROOT).as_posix()] += 1

    assert {folder: size for folder, size in sizes.items() if size > MODULES_MAX} == {}


def test_every_module_is_imported_by_the_product() -> None:
    imported: set[str] = set()
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names} - {name}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} - {name}
    leaves = {name for name, path in modules().items() if path.name != "__init__.py"}

    assert sorted(leaves - imported - ENTRY_POINTS) == []


def test_nothing_is_exempt_from_the_formatter() -> None:
    marker = "fmt: " + "skip"

    assert [name for name, path in modules().items() if marker in path.read_text("utf-8")] == []
