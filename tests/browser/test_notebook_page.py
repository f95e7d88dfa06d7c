"""The negative controls: what goes wrong in a page does not go unseen."""

import nbformat
import pytest

from browser.notebook_page import NotebookPage

pytestmark = pytest.mark.browser


def test_errors_in_cells_and_in_the_page_are_seen(lab, driver):
    address, token, folder = lab
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", "1 / 0", "2 + 2")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "failing.ipynb")
    page = NotebookPage(driver, address, token, "failing", len(cells))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        page.run_all()
    assert page.console_errors() == []
    driver.execute_script("console.error('a widget broke')")
    assert "a widget broke" in page.console_errors()[0]
    page.close()
