"""Notebooks: thin, executed top to bottom in a small fast mode, and committed with outputs of their own code."""

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
from execute import code_hash, execute  # noqa: E402

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
# What makes a run small and fast, for each notebook.
FAST = {
    "00_quickstart": ['data_name, weights = "shapes", "vit_nano_patch4_32.shapes"'],
    "01_patches_and_positions": ['data_name = "shapes"', 'weights = "vit_nano_patch4_32.shapes"'],
    "02_train_cifar10": [
        'data_name = "shapes"',
        'model_config = ViTConfig.preset("vit_pico_patch8_32")',
        'train_config = TrainConfig.preset("quick", device="cpu")',
    ],
    "03_evaluate": ['data_name, weights, num_corrupted = "shapes", "vit_nano_patch4_32.shapes", 8'],
    "04_attention_maps": [
        'data_name, weights, num_images = "shapes", "vit_nano_patch4_32.shapes", 16',
        "num_shapes = 8",
    ],
    "05_inside_the_vit": ['data_name, weights, num_images = "shapes", "vit_nano_patch4_32.shapes", 16'],
    "07_transfer": [
        'data_name, all_shots, num_draws, num_test, shots = "shapes", (1, 5), 2, 60, 2',
        'config = vit.TrainConfig.preset("quick", device="cpu")',
    ],
    "08_your_images": [
        'data_name, weights, num_demo = "shapes", "vit_nano_patch4_32.shapes", 60',
        'model_config = ViTConfig.preset("vit_pico_patch8_32")',
        'train_config = TrainConfig.preset("quick", device="cpu")',
    ],
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_thin(name):
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 10 <= len(notebook.cells) <= 22
    assert len(notebook.cells) - len(code) >= len(code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    for cell in code:
        assert len(cell.source.splitlines()) <= 12, cell.source
        assert not re.search(r"^\s*[!%]|\bpip\b|\.\./|/content", cell.source, re.MULTILINE), cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 6


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_come_from_the_committed_code(name):
    notebook = read(name)
    assert notebook.metadata.get("code_hash") == code_hash(notebook), (
        f"the code of {name} is newer than its outputs: python notebooks/execute.py {name} --in-place"
    )
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size <= 1_000_000
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    assert "widgets" not in notebook.metadata
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\", text), "an absolute path"
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert "\r" not in "".join(output.get("text", "") for output in outputs), "a progress bar that is not final"


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path):
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute(notebook, changes=FAST[name], environment={"VIT_RUN_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    if name == "02_train_cifar10":
        expected = {"config.json", "history.csv", "curves.png", "model.safetensors", "state.pt", "summary.json"}
        assert {name for name in os.listdir(tmp_path) if not name.startswith(".")} == expected
        last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1].outputs[0].text
        assert re.match(r"test accuracy \d+\.\d\d %\n", last)


def test_changes_need_a_parameters_cell():
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        execute(nbformat.v4.new_notebook(), changes=["x = 1"])


def test_the_hash_sees_code_and_only_code():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_markdown_cell("a")])
    before = code_hash(notebook)
    notebook.cells[1].source = "b"
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    assert code_hash(notebook) == before
    notebook.cells[0].source = "1 + 2"
    assert code_hash(notebook) != before
