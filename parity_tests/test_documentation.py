"""The documentation: its code runs, what it names exists, its tables are complete, and its site is built strictly.

Every block of code is `python`, `sh` or `text`. Blocks of `python` and `sh` are run in their order, page by page, in an
empty folder, by `make test-slow` or, on long pages, `make test-release`. The word `parse` after the language says that
a block needs hardware, a network or a file of another project, so only commands and options are checked. A comment
behind `print(...)` is the line that it prints.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from inspect import isclass, isfunction
from pathlib import Path

import pytest

from vit_cli.application import COMMANDS, every_command, parse
from vit_core.checkpoints.formats.registry import FOREIGN_FORMATS, FORMATS
from vit_core.position_embeddings import METHODS
from vit_train import recipes
from vit_train.config import Mesh

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
PROSE = PAGES | {name: ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
README = PAGES["README.md"]
AVOIDED = ("mend", "mends", "nothing tells", "blind to", "as ever", "spoken of", "whence", "thereof")
"""Archaic words and idioms, which readers with another first language have to read twice."""
BRITISH = re.compile(
    r"\b(?:colour|grey|neighbour|behaviour|favour|licence|labell|modell|towards|afterwards"
    r"|(?:normal|recogn|initial|standard|optim|summar|general|special|real|random)is(?:e|ing|ation))\w*",
    re.I,
)
"""Spellings other than the American ones, which the documentation uses outside of code."""
EXECUTABLES = Path(sys.executable).parent
VIT = re.compile(rf"(?:\bvit|-m vit_cli) ((?:{'|'.join(COMMANDS)})\b[^\"`]*)")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    line: int
    language: str
    words: tuple[str, ...]
    code: str

    @property
    def runs(self) -> bool:
        return self.language != "text" and "parse" not in self.words

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, with continued lines joined and without comments."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in their order."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```(\w*)([ \w]*)\n(.*?)^```$", text, re.M | re.S):
        line = text[: match.start()].count("\n") + 1
        found.append(Block(line, match[1], tuple(match[2].split()), match[3]))
    return found


LONG = {
    f"docs/{page}.md"
    for page in (
        "adapters", "checkpoints", "classes", "dinov3", "exporting", "extending/format", "figures", "fine-tuning",
        "first-hour", "getting-started", "identical", "many-devices", "masked-autoencoder", "planning", "resolutions",
        "using",
    )
}  # fmt: skip
"""Pages whose code takes more than half a minute of a core; it runs before a release (`make test-release`). What they
show first is walked in vit_cli/tests/test_first_hour.py."""
BLOCKS = {name: blocks(page) for name, page in PROSE.items()}


def run_block(block: Block, folder: Path, where: str) -> None:
    """Runs a block, and compares what it prints with the comments behind its calls of print."""
    environment = {
        **os.environ,
        "PATH": f"{EXECUTABLES}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "OMP_NUM_THREADS": "1",
    }
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    command = [sys.executable, "-c", block.code] if block.language == "python" else shell
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}:{block.line}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    if expected := re.findall(r"^print\(.*\)  # (.+)$", block.code, re.M):
        assert done.stdout.splitlines() == expected, f"{where}:{block.line}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.release if name in LONG else pytest.mark.slow)
        for name in BLOCKS
        if any(block.runs for block in BLOCKS[name])
    ],
)
def test_code_runs(name: str, tmp_path: Path) -> None:
    for block in BLOCKS[name]:
        if block.runs:
            run_block(block, tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_well_formed(name: str) -> None:
    """Also those that are not run: Python compiles, the shell parses, `make` has the target, `vit` has the options."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for block in BLOCKS[name]:
        where = f"{name}:{block.line}"
        assert block.language in ("python", "sh", "text"), where
        assert set(block.words) <= {"parse"}, where
        if block.language == "python":
            compile(block.code, where, "exec")
        if block.language == "sh":
            subprocess.run(["bash", "-n", "-c", block.code], check=True)
        for command in block.commands:
            if command.startswith("make "):
                assert command.split()[1] in targets, f"{where}: {command}"
            if match := VIT.search(command):
                assert_parses(match[1], f"{where}: {command}")


@pytest.mark.parametrize("name", PROSE)
def test_commands_in_the_text_parse(name: str) -> None:
    """Commands in a line of text or in a cell of a table. One without arguments is only a name."""
    for code in re.findall(r"`([^`\n]+)`", PROSE[name].read_text()):
        if re.match(r"vit [a-z]", code):
            assert code.split()[1] in COMMANDS, f"{name}: {code}"
        if (match := VIT.search(code)) and match[1].split()[1:]:
            assert_parses(match[1], f"{name}: {code}")


def assert_parses(command: str, where: str) -> None:
    """`vit` accepts the words: the command, its arguments and its options. Nothing is run."""
    words = shlex.split(command.replace("$f", "torch"))
    assert parse(words).arguments, where


@pytest.mark.parametrize("name", PROSE)
def test_what_it_names_exists(name: str) -> None:
    """Files and folders of the repository, links between pages, and names in its packages."""
    text, folder = PROSE[name].read_text(), PROSE[name].parent
    packages = r"(?:vit_core|vit_jax|vit_torch|vit_cli|train|parity_tests|docs)"
    for path in re.findall(rf"`({packages}/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
        assert (folder / path).exists(), path
    if name != "CHANGELOG.md":
        for dotted in re.findall(r"`(vit_(?:core|jax|torch|train|cli)(?:\.\w+)+)`", text):
            resolve(dotted)


def resolve(dotted: str) -> object:
    """The module, class, function or attribute of a dotted name. AttributeError if there is none."""
    parts = dotted.split(".")
    found: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of each row of the tables below a heading, without the tables' own headings."""
    section = PAGES[page].read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in re.findall(r"^\| .*\|$", section, re.M)]
    return [cells for cells in lines if cells[0].startswith("`")]


def names(page: str, heading: str) -> list[str]:
    """The code in the first cell of each row of the tables below a heading."""
    return [name for cells in rows(page, heading) for name in re.findall(r"`([^`]*)`", cells[0])]


def test_tables_are_complete() -> None:
    assert set(names("docs/checkpoints.md", "Formats")) == set(FORMATS)
    assert set(names("docs/fine-tuning.md", "Position embeddings at another resolution")) == set(METHODS)
    assert sorted(names("docs/recipes.md", "All recipes")) == recipes.names()
    assert names("docs/many-devices.md", "The mesh") == list(Mesh().axes)


def test_the_table_of_recipes_has_the_sources_of_their_docstrings() -> None:
    """The papers by their numbers; "the same" stands for the row above."""
    source = ""
    for cells in rows("docs/recipes.md", "All recipes"):
        source = source if cells[2] == "the same" else cells[2]
        text = recipes.open_recipe(cells[0].strip("`")).module.__doc__ or ""
        for paper in re.findall(r"arXiv:[\d.]+\d", source):
            assert paper in text, f"{cells[0]}: {paper}"


def test_the_table_of_formats_says_what_is_written() -> None:
    written = {cells[0].strip("`"): cells[2] for cells in rows("docs/checkpoints.md", "Formats")}
    for name, format in FOREIGN_FORMATS.items():
        if format.writer is None:
            assert written[name] == "not written"
        else:
            assert [kind for kind in format.writer.containers if kind not in written[name]] == []


def test_the_readme_is_short_and_names_what_continuous_integration_runs() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for command in re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.M):
        assert f"`{command}`" in text, command
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        assert ".ci/run" in workflow.read_text()


@pytest.mark.parametrize("name", PROSE)
def test_words_are_plain(name: str) -> None:
    text = PROSE[name].read_text().lower()
    for word in AVOIDED:
        assert not re.search(rf"\b{re.escape(word)}\b", text), word
    prose = re.sub(r"^ *```.*?^ *```$|`[^`]*`", "", text, flags=re.M | re.S)
    assert BRITISH.findall(prose) == []


class References(HTMLParser):
    """What a page loads from elsewhere or links to, and the identifiers on it."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            if re.match(r"\s*(https?:)?//", values.get(name, "")):
                self.external.append(f"<{tag} {name}={values[name]}>")
        # What makes the theme's script fetch a diagram library, or the facts of a repository.
        if "mermaid" in values.get("class", "").split() or values.get("data-md-component") == "source":
            self.external.append(f"<{tag} class={values.get('class')}>")


def build_site(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds a site strictly. Not with --quiet: mkdocs then counts no warnings, and nothing is strict."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a dead link, a missing page or an unknown name in the reference is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = build_site(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("link", ["page.md", "page.md#here", "gone.md", "page.md#nowhere"])
def test_a_dead_link_is_an_error(link: str, tmp_path: Path) -> None:
    """With the settings of this site, but without its pages and plugins."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.md").write_text(f"[link]({link})")
    (tmp_path / "pages/page.md").write_text("# Here")
    changes = "docs_dir: pages\nnav: [index.md, page.md]\nplugins: []\nhooks: []\nexclude_docs: ''\nextra_css: []\n"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\n{changes}")
    done = build_site(tmp_path / "mkdocs.yml", tmp_path / "site")
    alive = link in ("page.md", "page.md#here")
    assert (done.returncode == 0) == alive, done.stderr
    assert alive or link.split("#")[-1] in done.stderr


@pytest.mark.slow
def test_the_site_needs_no_other_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        references = References()
        references.feed(page.read_text())
        assert references.external == [], page.name
        for style in re.findall(r"<style.*?</style>", page.read_text(), re.S):
            assert not re.search(r"url\(|@import", style), page.name
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import\s*|url\(\s*)[\"']?(?:https?:)?//[^)]*", style.read_text()) == [], style.name
    for drawing in site.rglob("*.svg"):
        text = drawing.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search("http|<script", text), drawing.name


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_command(site: Path) -> None:
    ids = set[str]()
    for page in (site / "reference").glob("*.html"):
        references = References()
        references.feed(page.read_text())
        ids |= references.ids
    for package in ("vit_core", "vit_jax", "vit_torch", "vit_train.config"):
        module = importlib.import_module(package)
        for name in module.__all__:
            if isclass(getattr(module, name)) or isfunction(getattr(module, name)):
                # A function with the name of its module is found there.
                assert ids & {f"{package}.{name}", f"{package}.{name}.{name}"}, f"{package}.{name}"
    assert {f"vit-{'-'.join(words)}" for words in every_command()} <= ids


def test_what_tests_compile_is_kept_within_a_limit(tmp_path: Path) -> None:
    for file in ("pyproject.toml", "constraints.txt", ".venv/installed", ".venv/compiled/program-cache"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    program = tmp_path / ".venv/compiled/program-cache"
    program.write_bytes(bytes(2**21))
    for limit, kept in ((3, True), (1, False)):
        make = ["make", "--file", ROOT / "Makefile", "--directory", tmp_path, "bounded", f"COMPILED_MIB={limit}"]
        subprocess.run(make, check=True, capture_output=True)
        assert program.exists() == kept
