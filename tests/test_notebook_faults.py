"""What a reader of a notebook may do wrong: start in the middle, or ask of it what it cannot know."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def test_a_cell_that_comes_too_early_names_what_is_missing(tmp_path):
    """The training cell alone, in a fresh kernel: nothing is made or overwritten, and the error names a variable."""
    notebook = nbformat.read(NOTEBOOKS / "02_train_cifar10.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "vit.fit(" in cell.source]
    assert len(notebook.cells) == 1
    client = NotebookClient(notebook, kernel_name="python3", timeout=60, extra_arguments=["--log-level=ERROR"])
    with pytest.raises(CellExecutionError, match="NameError.* name 'torch' is not defined"):
        client.execute(env=os.environ | {"VIT_RUNS": str(tmp_path)})
    assert not list(tmp_path.iterdir())


def test_a_notebook_for_own_pictures_says_what_it_cannot_know():
    """A network names one of its classes for any picture; who tries one must have read that."""
    notebook = nbformat.read(NOTEBOOKS / "08_your_images.ipynb", as_version=4)
    text = " ".join(" ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    assert "names one of the ten classes of CIFAR-10 for *any* picture" in text
