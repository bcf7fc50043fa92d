"""Which file may import which, beyond the contracts of import-linter in pyproject.toml."""

from graphlib import TopologicalSorter

import grimp


def test_no_file_imports_itself_through_others():
    """Imports for type checkers count. A file that imports the package which holds it is found too."""
    packages = "engine", "ttc_kernels", "benchmarks"
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
    # The compiled module is no file of Python: importing it looks like importing its package.
    imports = {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}
    assert "engine.engine" in imports["engine"], "what is imported for type checkers alone is seen"
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the files
