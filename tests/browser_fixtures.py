"""A real headless browser for the tests of pages, if the machine has Chromium or Chrome and its driver."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers often run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
)


class Browser:
    """A browser with one open page.

    Attributes:
        driver: The driver of Selenium.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Open a page from disk in a window of this size in pixels and in this theme of the system."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        self.messages(), self.requests()  # forget those of the page before
        self.driver.get(page.as_uri())

    def messages(self) -> list[str]:
        """Return what the page has written to the console since the last call, including errors."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were requested since the last call, except the page and data inside of it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", self.driver.current_url.partition("#")[0]))]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript with `arguments`, and return its value."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """Return the first element that a CSS selector finds."""
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that a CSS selector finds and that are shown."""
        # In one step, because the page may replace elements at any time.
        found = "[...document.querySelectorAll(arguments[0])].filter((element) => element.checkVisibility())"
        return self.run(f"return {found}.map((element) => element.innerText.trim())", selector)

    def click(self, selector: str) -> None:
        """Scroll to an element and click on its middle with the mouse."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", self.find(selector))
        self.find(selector).click()

    def press(self, *keys: str) -> None:
        """Press keys on the keyboard: characters, or constants of `selenium.webdriver.common.keys.Keys`."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, at most 20 seconds, and return its value."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser that all tests share; skip the test if there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs a browser: install chromium (or Chrome) and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the path of the driver, Selenium does not look for one on the network.
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    driver.set_script_timeout(120)  # seconds
    try:
        yield Browser(driver)
    finally:
        driver.quit()
