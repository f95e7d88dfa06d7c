"""One notebook in JupyterLab, as somebody sees it who has a mouse and a keyboard."""

import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

PATIENCE = 120  # seconds for anything that has no limit of its own; the machine may be busy
STDERR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
# The button opens a dialog of the operating system, which no test can use, for an input that is not in the page. This
# puts it there, empty as the dialog finds it, and selenium can give it a file.
CATCH_FILE_DIALOG = "HTMLInputElement.prototype.click = function () { this.value = ''; document.body.append(this) }"
PROMPT = ".jp-Notebook .jp-CodeCell .jp-InputPrompt"  # of each cell of code; its text is [*] until it has run


class NotebookPage:
    """Opens a notebook of the server's folder; `panel` is the first one that its cells have shown."""

    def __init__(self, driver: WebDriver, address: str, token: str, name: str, num_cells: int) -> None:
        self.driver, self.address, self.token, self.name = driver, address, token, name
        driver.get_log("browser")  # forgets what earlier pages wrote
        driver.get(f"{address}doc/tree/{name}.ipynb?reset&token={token}")
        # The page shows the first cells before it has the others.
        self.wait(lambda: len(self._texts(PROMPT)) == num_cells, "the notebook did not open")
        self.wait(lambda: self.all(".jp-Notebook-ExecutionIndicator[data-status='idle']"), "no kernel")

    def run_all(self) -> None:
        """Run > Run All Cells, and waits until the last has run."""
        has_begun = False
        while not has_begun:  # a page that is still busy with itself may forget that it was asked
            for label in ("Run", "Run All Cells"):
                path = f"//div[contains(@class, 'Label')][text()='{label}']"
                self.wait(lambda path=path: self.driver.find_elements(By.XPATH, path), f"no menu {label}")[0].click()
            has_begun = self._poll(lambda: set(self._texts(PROMPT)) != {"[ ]:"}, seconds=10)
        self.wait(lambda: self._errors() or self._has_run(), "the cells did not finish", seconds=2 * PATIENCE)
        if errors := self._errors():
            raise AssertionError(f"{self.name}: {errors[0]}")

    def _errors(self) -> list[str]:
        """Tracebacks. The cells below the first do not run."""
        return [text for text in self._texts(STDERR) if "Traceback (most recent call last)" in text]

    def _has_run(self) -> bool:
        return all(text.strip("[]: ").isdigit() for text in self._texts(PROMPT))

    def _texts(self, selector: str) -> list[str]:
        """What elements say, also those out of sight, whose text selenium would call empty."""
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent)"
        return self.driver.execute_script(script, selector)

    # Finding

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def panel(self) -> WebElement:
        # A progress bar is a widget as well, but has nothing to press.
        return self.all(".jp-OutputArea-output > .jupyter-widgets:has(button)")[0]

    def picture(self) -> str:
        """The address of the panel's picture, another one for every drawing; empty while it is hidden."""
        picture = self.panel.find_element(By.CSS_SELECTOR, "img.widget-image")
        return picture.get_attribute("src") if picture.is_displayed() else ""

    def control(self, label: str, selector: str) -> WebElement:
        """What is beside a label, such as the handle of a slider."""
        row = f"//*[contains(@class, 'widget-inline-hbox')][label[text()='{label}']]"
        return self.driver.find_element(By.XPATH, row).find_element(By.CSS_SELECTOR, selector)

    def button(self, text: str) -> WebElement:
        path = f"//button[contains(@class, 'jupyter-button')][normalize-space()='{text}']"
        return self.driver.find_element(By.XPATH, path)

    def tab(self, text: str) -> WebElement:
        path = f"//*[contains(@class, 'TabBar-tabLabel')][normalize-space()='{text}']"
        return self.driver.find_element(By.XPATH, path)

    def text(self, css_class: str) -> str:
        """The text of the widget of that class."""
        return self._texts(f".{css_class}")[0]

    # Doing

    def move_slider(self, label: str, key: str = Keys.ARROW_RIGHT) -> None:
        self.control(label, ".noUi-handle").send_keys(key)

    def choose(self, label: str, option: str) -> None:
        Select(self.control(label, "select")).select_by_visible_text(option)

    def type_beside(self, label: str, text: str) -> None:
        """Types into the number beside a slider."""
        readout = self.control(label, ".widget-readout")
        self.click(readout)
        readout.send_keys(Keys.CONTROL, "a")
        readout.send_keys(text, Keys.ENTER)

    def upload(self, path: Path) -> None:
        """Presses the panel's upload button, and chooses a file."""
        self.driver.execute_script(CATCH_FILE_DIALOG)
        self.click(self.panel.find_element(By.CSS_SELECTOR, "button.widget-upload"))
        inputs = self.wait(lambda: self.all("body > input[type=file]"), "the button asks for no file")
        inputs[0].send_keys(str(path))
        self.driver.execute_script("arguments[0].remove()", inputs[0])

    def click(self, element: WebElement) -> None:
        """Clicks it as a mouse does, wherever it had to be scrolled from."""
        ActionChains(self.driver).move_to_element(self.scroll_to(element)).click().perform()

    def scroll_to(self, element: WebElement) -> WebElement:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    # Waiting

    def wait(self, condition: Callable[[], Any], complaint: str, seconds: float = PATIENCE) -> Any:
        """The first true value of the condition."""
        value = self._poll(condition, seconds)
        if not value:
            self._keep("failure", self.driver.get_screenshot_as_png)
            raise AssertionError(f"{self.name}: {complaint}, after {seconds} s")
        return value

    def _poll(self, condition: Callable[[], Any], seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException:  # the page has drawn it anew
                pass
            time.sleep(0.1)
        return None

    def wait_for_another_picture(self, before: str) -> str:
        return self.wait(lambda: (now := self.picture()) != before and now, "the picture did not change")

    # Seeing

    def screenshot(self, name: str) -> None:
        """Keeps a picture of the panel, if VIT_SCREENSHOTS names a folder for it."""
        self.scroll_to(self.panel)  # what comes into sight is laid out only then, and may move it again
        self._keep(name, lambda: self.scroll_to(self.panel).screenshot_as_png)

    def _keep(self, name: str, take: Callable[[], bytes]) -> None:
        if folder := os.environ.get("VIT_SCREENSHOTS"):
            time.sleep(1)  # for the page to be painted
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{self.name}-{name}.png").write_bytes(take())

    def console_errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]

    def close(self) -> None:
        """Ends the kernel: the next notebook needs its memory."""
        self.driver.get("about:blank")
        for session in self._ask("GET", "api/sessions"):
            self._ask("DELETE", f"api/sessions/{session['id']}")

    def _ask(self, method: str, path: str) -> Any:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")
