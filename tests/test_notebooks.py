"""Notebooks: thin, committed with outputs of their own code, and executed twice in one kernel in a small fast mode."""

import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest

import vit

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import execute as execute_script  # noqa: E402
from execute import code_hash, execute, insert_changes, settle_streams  # noqa: E402

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
# What makes a run small and fast, for all: fewer shapes where a notebook does not say how many, and figures whose parts
# are not laid out, which takes longer than to draw them.
SIZES = {"num_train": 300, "num_val": 60, "num_test": 100}
FAST_FOR_ALL = [
    f"vit.data.DATASETS['shapes'] = lambda **options: vit.data.make_shapes(**{SIZES} | options)",
    "vit.plots.style.STYLE['figure.constrained_layout.use'] = False",
]
# And for each notebook.
FAST = {
    "00_quickstart": ['data_name, weights = "shapes", "vit_nano_patch4_32.shapes"', "num_images = 14"],
    "01_patches_and_positions": ['data_name, weights = "shapes", "vit_nano_patch4_32.shapes"', "patch_sizes = [4, 8]"],
    "02_train_cifar10": [
        'data_name = "shapes"',
        'model_config = ViTConfig.preset("vit_pico_patch8_32")',
        'train_config = TrainConfig.preset("quick", device="cpu")',
    ],
    "03_evaluate": [
        'data_name, weights, num_corrupted = "shapes", "vit_nano_patch4_32.shapes", 8',
        "num_errors, corruptions.MAX_STRENGTH = 6, 1",
    ],
    "04_attention_maps": [
        'data_name, weights, num_images = "shapes", "vit_nano_patch4_32.shapes", 8',
        "num_shapes, queries = 8, [(0, 0), (4, 2)]",
        'analysis.METHODS = "rollout", "relevance"',
    ],
    "05_inside_the_vit": ['data_name, weights, num_images, shown = "shapes", "vit_nano_patch4_32.shapes", 16, [0, 3]'],
    "06_playground": [
        "vit.data.DATASETS['shapes'] = vit.data.make_shapes",  # all of them: trials differ by few images
        'data_name, num_images, num_trials = "shapes", 600, 10',  # of fewer images, too few trials leave 10 %
        'model_config = ViTConfig.preset("vit_pico_patch8_32", depth=1)',
        'train_config = TrainConfig.preset("quick", device="cpu", batch_size=20)',
    ],
    "07_transfer": [
        'data_name, all_shots, num_draws, num_test, shots = "shapes", (1, 5), 2, 60, 2',
        'config = vit.TrainConfig.preset("quick", device="cpu")',
    ],
    "08_your_images": [
        'data_name, weights, num_demo = "shapes", "vit_nano_patch4_32.shapes", 60',
        'model_config = ViTConfig.preset("vit_pico_patch8_32")',
        'train_config = TrainConfig.preset("quick", device="cpu")',
    ],
    "09_what_matters": ['data_name, live_minutes = "shapes", 0.005', 'base = make_base("quick", batch_size=10)'],
    "10_records": ['data_name, weights = "shapes", "vit_nano_patch4_32.shapes"'],
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


# Runs after all cells, and prints what is left of them. Cycles, which figures and panels are full of, wait for the
# collector, and freed pages for the allocator: both are used again before more is asked for, so they are no leak.
# What counts is what somebody holds on to: torch's caches, IPython's Out, panels that are still open.
PROBE = """
import ctypes, gc, json, sys, matplotlib.pyplot, psutil
gc.collect()
if sys.platform == "linux":
    ctypes.CDLL(None).malloc_trim(0)
process = psutil.Process()
facts = {"memory": process.memory_info().rss, "threads": process.num_threads()}
print(json.dumps(facts | {"children": len(process.children()), "figures": len(matplotlib.pyplot.get_fignums())}))
"""
MAX_GROWTH = 50_000_000  # bytes


def run_twice(notebook: nbformat.NotebookNode, folder: Path) -> tuple[nbformat.NotebookNode, list, list]:
    """Its last cell before all others, then the code cells of a first and of a second run, each with the probe last.

    All in one kernel, whose working folder is `folder` and none of the repository's; so are its runs.
    """
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"] + [PROBE]
    early = nbformat.v4.new_code_cell(f"import os; os.chdir({str(folder)!r})\n{sources[-2]}")
    early.metadata["tags"] = ["raises-exception"]
    cells = [early, *(nbformat.v4.new_code_cell(source) for source in 2 * sources)]
    both = nbformat.v4.new_notebook(cells=cells)
    execute(both, environment={"VIT_RUNS": str(folder), "OMP_NUM_THREADS": "1"})
    settle_streams(both)  # a bar that only shows after a second, and goes, may show in one of the runs
    assert all(cell.execution_count for cell in cells)
    return early, cells[1 : len(sources) + 1], cells[len(sources) + 1 :]


def outline(cell: nbformat.NotebookNode) -> list[tuple]:
    """What a cell shows, without the values. Progress goes to stderr, in as many lines as it takes."""
    return [
        (output.output_type, sorted(output.get("data", ())), output.text.count("\n") * (output.name == "stdout"))
        if output.output_type == "stream"
        else (output.output_type, sorted(output.get("data", ())))
        for output in cell.outputs
    ]


def leftovers(first: Sequence[nbformat.NotebookNode], second: Sequence[nbformat.NotebookNode]) -> list[str]:
    """What is wrong after a second run, in words."""
    before, after = (json.loads(cells[-1].outputs[0].text) for cells in (first, second))
    found = []
    if after["memory"] > before["memory"] + MAX_GROWTH:
        found.append(f"memory grew by {(after['memory'] - before['memory']) / 1e6:.0f} MB")
    if after["threads"] > before["threads"]:
        found.append(f"threads: {before['threads']}, then {after['threads']}")
    for kind in ("children", "figures"):
        if before[kind] or after[kind]:
            found.append(f"{kind}: {before[kind]}, then {after[kind]}")
    pairs = zip(first, second, strict=True)
    return found + [f"other outputs of: {old.source}" for old, new in pairs if outline(old) != outline(new)]


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_twice_and_leaves_nothing_behind(name, tmp_path):
    notebook = read(name)
    insert_changes(notebook, FAST_FOR_ALL + FAST[name])
    early, first, second = run_twice(notebook, tmp_path)
    assert early.outputs[-1].get("ename") == "NameError", "out of order, a cell must say what is missing"
    assert leftovers(first, second) == []
    if name == "02_train_cifar10":
        runs = list(tmp_path.iterdir())
        assert len(runs) == 2, "the second run must not write over the first"
        expected = {"config.json", "history.csv", "curves.png", "model.safetensors", "summary.json"}
        expected |= {"state.pt", "state.previous.pt", "state.best.pt"}
        for run in runs:
            assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == expected
        said = [output.text for cell in second for output in cell.outputs if output.get("name") == "stdout"]
        assert sum(bool(re.match(r"test accuracy \d+\.\d\d %\n", text)) for text in said) == 1


@pytest.mark.notebook
def test_a_stopped_training_is_not_tested_and_goes_on(tmp_path):
    name, cells = "02_train_cifar10", []
    after_an_epoch = "should_stop=lambda: (run_dir / 'history.csv').stat().st_size > 0"
    stopped = f"fit = vit.fit; vit.fit = lambda *a, **k: fit(*a, **k, {after_an_epoch})"
    for change in (stopped, "vit.fit, resume_from = fit, vit.training.list_runs()[-1].folder"):
        notebook = read(name)
        insert_changes(notebook, [*FAST_FOR_ALL, *FAST[name], change])
        cells += [nbformat.v4.new_code_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells[: len(cells) // 2]:
        cell.metadata["tags"] = ["raises-exception"]
    execute(nbformat.v4.new_notebook(cells=cells), environment={"VIT_RUNS": str(tmp_path)})
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert errors[0].evalue == "the training was stopped after 1 epoch: finish it, with resume=True in vit.fit"
    (run,) = tmp_path.iterdir()
    assert len(vit.training.History.load_csv(run / "history.csv")) == 2 and (run / "model.safetensors").exists()


@pytest.mark.notebook
def test_leftovers_are_seen(tmp_path):
    """The negative control: a kernel that leaks everything there is to leak."""
    leaks = [
        "import gc, subprocess, sys, threading, matplotlib, matplotlib.pyplot as plt",
        "kept = globals().get('kept', []); kept.append(bytes(bytearray(60_000_000)))",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=subprocess.PIPE)",
        "matplotlib.use('agg'); figure = plt.figure()",
        "for _ in kept: print('again')",
        "1 + 1",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(leak) for leak in leaks])
    _, first, second = run_twice(notebook, tmp_path)
    found = leftovers(first, second)
    assert [line.split()[0] for line in found] == ["memory", "threads:", "children:", "figures:", "other"]
    assert found[-1] == f"other outputs of: {leaks[5]}"


def test_changes_need_a_parameters_cell():
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        insert_changes(nbformat.v4.new_notebook(), ["x = 1"])


def test_the_hash_sees_code_and_only_code():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_markdown_cell("a")])
    before = code_hash(notebook)
    notebook.cells[1].source = "b"
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    assert code_hash(notebook) == before
    notebook.cells[0].source = "1 + 2"
    assert code_hash(notebook) != before


def test_only_the_final_state_of_a_bar_is_kept():
    outputs = [nbformat.v4.new_output("stream", text=text) for text in ("a\n 10%\r 20%\rdone\nb", "  5%\r      \r")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
    settle_streams(notebook)
    assert [output.text for output in notebook.cells[0].outputs] == ["a\ndone\nb"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_interrupted_does_not_take_the_place_of_the_committed_notebook(tmp_path, monkeypatch, error):
    def interrupted(notebook, **_):
        notebook.cells[0].source = "half done"
        raise error

    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "a.ipynb")
    before = (tmp_path / "a.ipynb").read_text()
    monkeypatch.setattr(execute_script, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(execute_script, "execute", interrupted)
    monkeypatch.setattr(sys, "argv", ["execute.py", "a", "--in-place"])
    monkeypatch.setenv("VIT_RUNS", str(tmp_path / "runs"))
    with pytest.raises(error):
        execute_script.main()
    assert (tmp_path / "a.ipynb").read_text() == before
    (kept,) = (tmp_path / "runs").glob("*-a/a.ipynb")
    assert "half done" in kept.read_text()
