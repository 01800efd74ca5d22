"""The README's code runs as it stands there, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_code_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code += "\nprint(tuple(logits.shape), model.checkpoint.provenance.position_resampling[0].target)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "(1, 1000) (24, 24)\n", done.stderr


def test_every_file_and_command_it_names_is_there() -> None:
    text, root = README.read_text(), README.parent
    for path in re.findall(r"`((?:vit_core|vit_jax|vit_torch|train|parity_tests)[\w/.]*)`", text):
        assert (root / path.split(".ViT")[0]).exists(), path
    command = [sys.executable, "-c", "from vit_core.cli import main; main()", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"`vit ([a-z]+)", text):
        assert f" {name} " in help_text, name
