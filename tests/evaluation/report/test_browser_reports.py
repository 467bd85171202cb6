"""Complete reports in a real browser: every switch, filter, tab and table of every page works, in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser_fixtures import Browser
from report_fixtures import HOSTILE_NAMES, classification_record, detection_record, segmentation_record

from twins_dense.evaluation.report.build import write_report
from twins_dense.evaluation.report.data import write_data_report

WRITERS: dict[str, Callable[..., Path]] = {
    "detection": detection_record,
    "segmentation": segmentation_record,
    "classification": classification_record,
}

# Use every control of the page once, and return how many of each kind there are, and what did not react.
WALK = """
    const failures = [];
    const all = (selector, root = document) => [...root.querySelectorAll(selector)];
    const check = (condition, what) => { if (!condition) failures.push(what); };
    const state = (button) => button.getAttribute("aria-pressed");
    for (const header of all("table.sortable th[aria-sort]")) {
      const table = header.closest("table");
      const count = table.tBodies[0].rows.length;
      header.querySelector("button").click();
      check(header.getAttribute("aria-sort") !== "none", `sorting of ${table.id}`);
      check(table.tBodies[0].rows.length === count, `rows of ${table.id}`);
    }
    for (const tab of all("[role=tab]")) {
      tab.click();
      const panel = document.getElementById(tab.getAttribute("aria-controls"));
      check(tab.getAttribute("aria-selected") === "true" && panel.checkVisibility(), `tab ${tab.id}`);
    }
    for (const gallery of all(".gallery")) {
      for (const button of all(".switch", gallery)) {
        const before = state(button);
        button.click();
        check(state(button) !== before, `switch ${button.textContent} of ${gallery.id}`);
        button.click();
        check(state(button) === before, `switch ${button.textContent} of ${gallery.id}`);
      }
      gallery.querySelector(".gallery-more")?.click();
      const total = all(".card", gallery).length;
      check(total > 0, `${gallery.id} is empty`);
      const shown = () => all(".card", gallery).filter((card) => card.checkVisibility()).length;
      for (const select of all("select", gallery)) {
        for (const option of all("option", select)) {
          select.value = option.value;
          select.dispatchEvent(new Event("change"));
          const expected = option.value ? Number(/ \\((\\d+)\\)$/.exec(option.textContent)[1]) : total;
          check(shown() === expected, `filter ${option.textContent} of ${gallery.id}`);
        }
        select.value = "";
        select.dispatchEvent(new Event("change"));
      }
      const titles = new Set();
      gallery.querySelector(".panes").click();
      const dialog = document.querySelector("dialog[open]");
      for (let i = 0; i < total; i += 1) {
        titles.add(dialog.querySelector(".viewer-count").textContent);
        dialog.querySelector("[aria-label='Next image']").click();
      }
      check(titles.size === total, `viewer of ${gallery.id}`);
      dialog.close();
    }
    const ids = all("[id]").map((element) => element.id);
    check(new Set(ids).size === ids.length, "the same id twice");
    for (const link of all("a[href^='#']")) check(document.getElementById(link.hash.slice(1)), `link ${link.hash}`);
    const decoded = all("img").map((image) => image.decode().catch(() => check(false, "a picture cannot be decoded")));
    return Promise.all(decoded).then(() => [all(".gallery").length, all("table.sortable").length, failures]);
"""


def walk(browser: Browser, page: Path, *, num_galleries: int) -> None:
    for width, dark in ((360, True), (1280, False)):
        browser.open(page, width=width, dark=dark)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        found, num_tables, failures = browser.run(WALK)
        assert failures == []
        assert found >= num_galleries
        assert num_tables >= 1
        assert browser.run("return document.documentElement.scrollWidth") <= width
        # Nothing of a name has become an element: neither the <script> of a class nor the <u> of a file.
        elements = "document.querySelectorAll(\"script:not([type='application/json']), u\").length"
        assert browser.run(f"return {elements}") == 1
        assert browser.messages() == []
        assert browser.requests() == []


@pytest.mark.parametrize("task", WRITERS)
def test_the_report_of_an_evaluation(browser: Browser, tmp_path: Path, task: str) -> None:
    folder = WRITERS[task](tmp_path / "mine")
    walk(browser, write_report(folder), num_galleries=1)


@pytest.mark.parametrize("task", WRITERS)
def test_the_report_of_a_comparison_with_hostile_names(browser: Browser, tmp_path: Path, task: str) -> None:
    before = WRITERS[task](tmp_path / "before", classes=HOSTILE_NAMES)
    after = WRITERS[task](tmp_path / "after", classes=HOSTILE_NAMES, flawless=True)
    walk(browser, write_report(after, tmp_path / "report.html", against=before), num_galleries=1)


@pytest.mark.parametrize("data", ["toy_data", "label_data"])
def test_the_report_of_a_data_set(browser: Browser, tmp_path: Path, data: str, request: pytest.FixtureRequest) -> None:
    page = write_data_report(request.getfixturevalue(data), tmp_path / "data.html")
    walk(browser, page, num_galleries=1)
