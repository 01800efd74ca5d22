"""The structure of the code: no import circles, and no top-level name that a file of a user could have."""

import tomllib
from pathlib import Path

import grimp
import networkx
import pytest
import setuptools

ROOT = Path(__file__).parents[1]
PACKAGES = ("vit_core", "vit_jax", "vit_torch", "vit_train", "vit_cli")


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """Module -> module that it imports, anywhere in the file (but under TYPE_CHECKING); tests left out."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    found = networkx.DiGraph()
    for module in graph.modules:
        if ".tests" not in module:
            found.add_node(module)
            targets = graph.find_modules_directly_imported_by(module)
            found.add_edges_from((module, target) for target in targets if ".tests" not in target)
    return found


def test_no_file_is_in_an_import_circle(imports: networkx.DiGraph) -> None:
    assert imports.number_of_nodes() > 100
    circles = [sorted(circle) for circle in networkx.strongly_connected_components(imports) if len(circle) > 1]
    assert circles == []


def test_installed_names_begin_with_vit() -> None:
    """Everyone has a train.py: the package must not own that name."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = [
        package
        for where in options["where"]
        for package in setuptools.find_packages(ROOT / where, exclude=options["exclude"], include=options["include"])
    ]
    assert {package.split(".")[0] for package in packages} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package: str) -> None:
    folder = ROOT / "train" / package if package == "vit_train" else ROOT / package
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in folder.rglob("*.py")}
    assert len(lengths) > 5
    assert {path: length for path, length in lengths.items() if length > 400} == {}
