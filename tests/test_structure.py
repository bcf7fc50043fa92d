"""The form of the code: which file may import which, beyond import-linter's contracts; how long things may be."""

import ast
import functools
import statistics
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

PACKAGES = "engine", "ttc_kernels", "benchmarks"


def test_no_file_imports_itself_through_others():
    """Imports for type checkers count. A file that imports the package which holds it is found too."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    # The compiled module is no file of Python: importing it looks like importing its package.
    imports = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    assert "engine.engine" in imports["engine"], "what is imported for type checkers alone is seen"
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the files


ROOT = Path(__file__).resolve().parents[1]
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 350, 60, 10


@functools.cache
def sources() -> dict[Path, ast.Module]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    return [(str(path), each) for path, tree in sources().items() for each in ast.walk(tree) if isinstance(each, kinds)]


def test_files_and_functions_are_short():
    long_files = [str(path) for path in sources() if len((ROOT / path).read_text().splitlines()) > MAX_FILE]
    lengths = {f"{path}: {each.name}": each.end_lineno - each.lineno + 1 for path, each in functions()}
    assert long_files == []
    assert [name for name, length in lengths.items() if length > MAX_FUNCTION] == []
    assert statistics.median(lengths.values()) <= 8
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 24


def test_public_functions_have_few_parameters():
    """The command line is apart: its parameters are options, and typer reads them off the signature."""
    many = []
    for path, each in functions():
        named = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
        num_parameters = len([name for name in named if name.arg not in ("self", "cls")])
        is_command = any("command" in ast.unparse(decorator) for decorator in each.decorator_list)
        is_public = not each.name.startswith("_") and not is_command
        if is_public and num_parameters > MAX_PARAMETERS:
            many.append(f"{path}: {each.name}")
    assert many == []
