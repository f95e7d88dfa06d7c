"""Runs a notebook from top to bottom, showing its progress in the terminal while it runs.

    python notebooks/execute.py 02_train_cifar10                      into a new folder under runs/
    python notebooks/execute.py 02_train_cifar10 --set "train_config = replace(train_config, seed=1)"
    python notebooks/execute.py 02_train_cifar10 --in-place           refreshes the outputs that are committed

`--set` lines run right after the cell tagged `parameters`. The executed notebook is kept even if a cell fails. With
`--in-place` a hash of the code goes into the metadata, so that a test can tell outputs older than their code.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent
REPOSITORY = NOTEBOOKS.parent


class EchoingClient(NotebookClient):
    """Also prints what the cells print, as they print it."""

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream":
            stream = sys.stderr if msg["content"]["name"] == "stderr" else sys.stdout
            stream.write(msg["content"]["text"])
            stream.flush()
        return super().process_message(msg, cell, cell_index)


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the code cells' sources."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def shrink_pictures(notebook: NotebookNode) -> None:
    """Packs the PNG outputs tighter, without a change to any pixel: committed notebooks must stay under 1 MB."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                packed = io.BytesIO()
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
                picture.save(packed, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(packed.getvalue()).decode()


def settle_streams(notebook: NotebookNode) -> None:
    """Leaves of what was printed what a terminal would still show: of each line what follows its last return to the
    start, and nothing of bars that have wiped themselves out."""
    for cell in notebook.cells:
        for output in [output for output in cell.get("outputs", []) if output.output_type == "stream"]:
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
            if not output.text.strip():
                cell.outputs.remove(output)


def insert_changes(notebook: NotebookNode, changes: list[str]) -> None:
    """Inserts a cell of these lines right after the cell tagged `parameters`."""
    places = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if not places:
        raise ValueError("the notebook has no cell tagged 'parameters', so there is nothing to --set")
    notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell("\n".join(changes)))


def execute(notebook: NotebookNode, *, environment: dict | None = None) -> None:
    """Runs `notebook` in a fresh kernel and fills in its outputs.

    Args:
        environment: variables for the kernel, beside the present ones.
    """
    client = EchoingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    client.execute(env=os.environ | {"VIT_PROGRESS": "text"} | (environment or {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", help="a name in notebooks/, with or without .ipynb")
    parser.add_argument("--set", action="append", default=[], metavar="CODE", help="a line to run after the parameters")
    parser.add_argument("--in-place", action="store_true", help="write the outputs into the notebook itself")
    options = parser.parse_args()
    source = NOTEBOOKS / f"{options.notebook.removesuffix('.ipynb')}.ipynb"
    if not source.is_file():
        known = ", ".join(sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
        parser.error(f"no notebook {source.name}; there are: {known}")
    if options.in_place and options.set:
        parser.error("--in-place keeps the outputs of the default parameters: it takes no --set")
    notebook = nbformat.read(source, as_version=4)
    root = Path(os.environ.get("VIT_RUNS") or REPOSITORY / "runs")
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{source.stem}"
    folder.mkdir(parents=True)
    target = folder / source.name
    try:
        if options.set:
            insert_changes(notebook, options.set)
        execute(notebook, environment={"VIT_RUN_FOLDER": str(folder)})
        if options.in_place:  # not what was interrupted
            target = source
            notebook.metadata["code_hash"] = code_hash(notebook)
            settle_streams(notebook)
            shrink_pictures(notebook)
    except CellExecutionError as error:
        print(f"\n{error}\nexecuted up to the error: {target}", file=sys.stderr)
        return 1
    finally:
        nbformat.write(notebook, target)
    if options.in_place:
        print(f"outputs written to {os.path.relpath(target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
