"""JupyterLab and a browser without a window, started once for all tests; either may be missing, and then they skip.

The server listens on this machine only, asks for a token, and has folders of its own: no setting, kernel or workspace
of whoever runs the tests is read or changed. VIT_SCREENSHOTS names a folder that keeps pictures of what the tests saw.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from browser.notebook_page import NotebookPage

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
START_SECONDS = 120


@pytest.fixture(scope="session")
def driver() -> Iterator:
    """Chromium, driven by selenium. Both programs must be installed: nothing is downloaded here."""
    programs = {
        "browser": shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"),
        "driver": shutil.which("chromedriver"),
    }
    for kind, path in programs.items():
        if path is None:
            pytest.skip(f"no Chromium {kind} on the PATH; on Debian: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e '.[test]'")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["browser"]
    # Containers seldom allow the sandbox, and have little shared memory; the only page that is opened is our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["driver"]))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def lab(driver, tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab over an empty folder: its address, its token, the folder."""
    home = tmp_path_factory.mktemp("lab")
    folders = {name: home / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    folders |= {"HOME": home, "IPYTHONDIR": home / "ipython", "VIT_RUNS": home / "runs"}
    notebooks = home / "notebooks"
    for folder in (*folders.values(), notebooks):
        folder.mkdir(exist_ok=True)
    settings = folders["JUPYTER_CONFIG_DIR"] / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps(SETTINGS))
    token = secrets.token_hex(16)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "VIT_RUN"))}
    # The kernel imports the package that these tests belong to, wherever the notebook lies.
    own = {"PYTHONPATH": str(REPOSITORY), "JUPYTER_TOKEN": token, "VIT_PROGRESS": "auto", "OMP_NUM_THREADS": "1"}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={notebooks}"],
            env=inherited | {name: str(path) for name, path in folders.items()} | own,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield _address(server, folders["JUPYTER_RUNTIME_DIR"], home / "log"), token, notebooks
    finally:
        server.terminate()  # it ends its kernels, too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen, runtime: Path, log: Path) -> str:
    """Where the server listens, which it writes down once it does."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            text = path.read_text()
            if text.strip().endswith("}"):
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def open_notebook(lab, driver) -> Iterator:
    """A function that opens a small and fast copy of a notebook, by its name, and runs all cells and `more`."""
    from test_notebooks import FAST, NAMES, insert_changes, read

    address, token, folder = lab
    opened = []

    def open_and_run(name: str, more: str = "") -> NotebookPage:
        if name not in NAMES:
            pytest.skip(f"there is no notebook {name} yet")
        notebook = read(name)
        insert_changes(notebook, FAST[name])
        if more:
            notebook.cells.append(nbformat.v4.new_code_cell(more))
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in code:
            cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / f"{name}.ipynb")
        opened.append(NotebookPage(driver, address, token, name, len(code)))
        opened[-1].run_all()
        return opened[-1]

    yield open_and_run
    for page in opened:
        page.close()
