"""Pages in a real browser: sorting, filtering, switches, zoom by mouse and keyboard, themes, phones, hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_fixtures import Browser
from report_fixtures import HOSTILE_NAMES, write_image

from twins_dense.evaluation.report import page as report_page
from twins_dense.evaluation.report.gallery import Card, Layer, Shape, gallery
from twins_dense.evaluation.report.page import Headline, Section, render_page

PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]


def table(*arguments: Any, **options: Any) -> Any:
    return report_page._ENVIRONMENT.get_template("components.html.j2").module.table(*arguments, **options)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with a table, and galleries of six images with objects, of three maps and of 22 images."""
    folder = tmp_path_factory.mktemp("page")
    cards = []
    for i in range(5):
        shapes = [
            Shape((40, 30, 140, 120), "truth", "cat"),
            Shape((42, 33, 138, 122), "correct", "cat 0.91"),
            Shape((150, 20, 230, 100), "missed", "dog"),
            *([Shape((150, 100, 220, 150), "background", "bird 0.40")] if i == 3 else []),
        ]
        file = str(write_image(folder / f"{i}.jpg", i, height=180, width=240))
        tags = ["cat", "missed", *(["bird", "background"] if i == 3 else [])]
        cards.append(Card(file, f"photo {i}", f"{len(shapes)} objects", tags, shapes))
    cards.append(Card(str(folder / "gone.jpg"), "photo 5", "", ["fish"]))
    filters = [("class", ["cat", "bird", "fish"]), ("error", ["missed", "background"])]
    maps = []
    for i in range(3):
        truth = np.repeat([[0] * 80 + [1] * 80 + [2] * 70 + [255] * 10], 180, axis=0).astype(np.uint8)
        prediction = np.roll(truth, -20, axis=1)
        layers = [Layer("truth", truth, PALETTE, ["sky", "road", "tree"])]
        layers += [Layer("prediction", prediction, PALETTE, ["sky", "road", "tree"])]
        layers += [Layer("errors", np.where(truth == prediction, 255, 0).astype(np.uint8), PALETTE[:1], ["wrong"])]
        maps.append(Card(cards[i].file, f"street {i}", "", layers=layers))
    many = [Card(cards[0].file, f"picture {i}", "", ["dog", *(["cat"] if i % 3 else [])]) for i in range(22)]
    columns = [("class", "text"), ("AP", "score"), ("objects", "count")]
    rows = [["cat", 0.25, 1200], ["dog", 0.5, 7], ["bird", None, 30]]
    sections = [
        Section("classes", "Classes", table("per-class", columns, rows, caption="AP of each class.", filterable=True)),
        Section("worst", "Worst images", gallery("objects", cards, filters=filters)),
        Section("maps", "Maps", gallery("maps-gallery", maps)),
        Section("many", "Many images", gallery("many-gallery", many, filters=[("class", ["cat", "dog"])])),
    ]
    path = folder / "report.html"
    html = render_page("Report", [("Model", "tiny")], [Headline("box AP", 0.31, interval=(0.2, 0.4))], sections)
    path.write_text(html, encoding="utf-8")
    return path


def is_quiet(browser: Browser) -> bool:
    """Return whether the page has written no message to the console and requested nothing."""
    assert browser.messages() == []
    assert browser.requests() == []
    return True


def column(browser: Browser, number: int) -> list[str]:
    return browser.texts(f"#per-class tbody tr > :nth-child({number})")


def shown(browser: Browser, gallery_id: str = "objects") -> list[str]:
    return browser.texts(f"#{gallery_id} .card-title")


def scroll(browser: Browser) -> list[float]:
    """Return the place to which both panes are scrolled, as soon as it is the same."""

    def places() -> list[list[float]]:
        return browser.run("return [...document.querySelectorAll('.scroller')].map((e) => [e.scrollLeft, e.scrollTop])")

    return browser.wait(lambda: (found := places()) and found[0] == found[1] and found[0])


def picture_width(browser: Browser) -> float:
    return browser.run("return document.querySelector('.viewer .picture').getBoundingClientRect().width")


def viewer_title(browser: Browser) -> str | None:
    """Return the title of the picture that fills the window; `None` if there is none."""
    titles = browser.texts("dialog[open] h3")
    return titles[0] if titles else None


def test_messages_and_requests_of_a_page_are_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='missing.png'><script>console.error('wrong')</script>", encoding="utf-8")
    browser.open(page)
    assert any("wrong" in message for message in browser.messages())
    assert browser.requests() == [(tmp_path / "missing.png").as_uri()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_opens_without_a_message_a_request_or_a_jump(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    browser.wait(lambda: browser.texts("#objects .label"))
    assert browser.run("return document.documentElement.scrollWidth") <= width
    observe = """
        const done = arguments[0];
        new PerformanceObserver((list) => done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0)))
            .observe({ type: "layout-shift", buffered: true });
        setTimeout(() => done(0), 300);  // without an entry, the observer is silent
    """
    assert browser.driver.execute_async_script(observe) < 0.01
    light = browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark
    assert is_quiet(browser)


def test_sorting_a_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert column(browser, 1) == ["cat", "dog", "bird"]
    browser.click("#per-class th:nth-child(2) button")
    assert column(browser, 1) == ["dog", "cat", "bird"]  # unknown values come last
    assert browser.find("#per-class th:nth-child(2)").get_attribute("aria-sort") == "descending"
    browser.click("#per-class th:nth-child(2) button")
    assert column(browser, 1) == ["cat", "dog", "bird"]
    assert browser.find("#per-class th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    browser.click("#per-class th:nth-child(1) button")
    assert column(browser, 1) == ["bird", "cat", "dog"]
    assert browser.find("#per-class th:nth-child(2)").get_attribute("aria-sort") == "none"
    browser.click("#per-class th:nth-child(3) button")
    assert column(browser, 3) == ["1,200", "30", "7"]
    browser.find("input[type=search]").send_keys("do")
    assert column(browser, 1) == ["dog"]
    assert is_quiet(browser)


def test_filtering_a_gallery(browser: Browser, page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    browser.open(page)
    by_class, by_error = (Select(each) for each in browser.driver.find_elements("css selector", "#objects select"))
    count = browser.find("#objects .gallery-count")
    assert (len(shown(browser)), count.text) == (6, "6 images")
    by_class.select_by_value("bird")
    assert (shown(browser), count.text) == (["photo 3"], "1 of 6 images")
    by_class.select_by_value("cat")
    assert (len(shown(browser)), count.text) == (5, "5 of 6 images")
    by_error.select_by_value("background")
    assert (shown(browser), count.text) == (["photo 3"], "1 of 6 images")
    by_class.select_by_value("fish")
    assert (shown(browser), count.text) == ([], "0 of 6 images")
    assert browser.texts("#objects .empty") == ["No image matches these filters."]
    by_class.select_by_value("")
    by_error.select_by_value("")
    assert (len(shown(browser)), count.text) == (6, "6 images")
    assert browser.texts("#objects .empty") == []
    assert browser.texts("#maps-gallery .card-title") == ["street 0", "street 1", "street 2"]  # not filtered
    assert is_quiet(browser)


def test_more_images_are_shown_on_demand(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    browser.open(page)
    by_class = Select(browser.find("#many-gallery select"))
    more = browser.find("#many-gallery .gallery-more")
    titles = [f"picture {i}" for i in range(22)]
    assert (shown(browser, "many-gallery"), more.text) == (titles[:12], "Show 10 more")
    by_class.select_by_value("cat")  # 14 images
    cats = [title for i, title in enumerate(titles) if i % 3]
    assert (shown(browser, "many-gallery"), more.text) == (cats[:12], "Show 2 more")
    assert browser.texts("#many-gallery .gallery-count") == ["14 of 22 images"]
    browser.click("#many-gallery .card:nth-child(2) .panes")
    browser.press(Keys.ARROW_LEFT, Keys.ESCAPE)  # to the last one, which is then shown below
    browser.wait(lambda: shown(browser, "many-gallery") == cats)
    assert not more.is_displayed()
    browser.open(page)
    browser.click("#many-gallery .gallery-more")
    assert shown(browser, "many-gallery") == titles
    focused = "return document.activeElement.closest('.card').querySelector('.card-title').textContent"
    assert browser.run(focused) == "picture 12"
    assert is_quiet(browser)


def drawn(browser: Browser, card: str = "#objects .card:nth-child(4)") -> list[list[str]]:
    """Return the kinds of the shapes that each pane of a card shows."""
    script = """
        const panes = [...document.querySelectorAll(arguments[0] + " .pane")];
        const isShown = (shape) => shape.getClientRects().length;
        const shapes = panes.map((pane) => [...pane.querySelectorAll(".shape")].filter(isShown));
        return shapes.map((found) => found.map((shape) => shape.classList[1]));
    """
    return browser.run(script, card)


def test_switches_show_and_hide_truth_and_prediction(browser: Browser, page: Path) -> None:
    browser.open(page)
    truth = ["kind-truth", "kind-missed"]
    prediction = ["kind-correct", "kind-background"]
    assert drawn(browser) == [truth, prediction]
    browser.click("#objects [data-side]")
    assert drawn(browser) == [[*truth, *prediction]]
    browser.click("#objects [data-group='0']")
    assert drawn(browser) == [prediction]
    assert browser.find("#objects [data-group='0']").get_attribute("aria-pressed") == "false"
    browser.click("#objects [data-group='1']")
    assert drawn(browser) == [[]]  # the photo alone
    browser.click("#objects [data-group='0']")
    browser.click("#objects [data-side]")
    assert drawn(browser) == [truth]
    browser.click("#objects [data-kind='truth']")
    assert drawn(browser) == [["kind-missed"]]
    browser.wait(lambda: browser.texts("#objects .card:nth-child(4) .label") == ["dog"])
    assert is_quiet(browser)


def test_labels_do_not_cover_each_other(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#objects .card:nth-child(4) .panes")
    browser.wait(lambda: browser.texts(".viewer .label") == ["dog", "cat", "bird 0.40", "cat 0.91"])
    script = """
        return [...document.querySelectorAll(".viewer .label")].map((label) => label.getBoundingClientRect())
            .map(({left, right, top, bottom}) => [left, right, top, bottom])
    """
    boxes = browser.run(script)
    for i, (left, right, top, bottom) in enumerate(boxes):
        assert right - left > 5 and bottom - top > 5
        for x1, x2, y1, y2 in boxes[:i]:
            assert left >= x2 or x1 >= right or top >= y2 or y1 >= bottom


def test_zooming_with_the_mouse(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    browser.open(page)
    browser.click("#objects .card:nth-child(2) .panes")
    assert viewer_title(browser) == "photo 1"
    assert browser.texts(".viewer-count") == ["2 of 5"]
    fitting = picture_width(browser)
    assert 600 < fitting <= 640  # two panes fill the window
    scroller = browser.find(".viewer .scroller")
    origin = ScrollOrigin.from_element(scroller)
    ActionChains(browser.driver).scroll_from_origin(origin, 0, -500).perform()
    browser.wait(lambda: picture_width(browser) > 2 * fitting)
    x, y = scroll(browser)
    assert min(x, y) > 0
    ActionChains(browser.driver).click_and_hold(scroller).move_by_offset(-60, -40).release().perform()
    browser.wait(lambda: scroll(browser) == [x + 60, y + 40])
    ActionChains(browser.driver).scroll_from_origin(origin, 0, 5000).perform()
    browser.wait(lambda: picture_width(browser) == pytest.approx(fitting))
    browser.click(".viewer [aria-label='Zoom in']")
    assert picture_width(browser) == pytest.approx(1.5 * fitting, rel=0.01)
    browser.click(".viewer [aria-label='Next image']")
    assert viewer_title(browser) == "photo 2"
    assert picture_width(browser) == pytest.approx(fitting)
    browser.click(".viewer [data-group='0']")
    assert browser.find("#objects [data-group='0']").get_attribute("aria-pressed") == "false"
    assert drawn(browser, ".viewer") == [["kind-correct"]]
    browser.click(".viewer [aria-label='Close']")
    assert viewer_title(browser) is None
    assert is_quiet(browser)


def test_zooming_with_the_keyboard(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    browser.run("document.querySelector('#objects .panes').focus()")
    browser.press(Keys.ENTER)
    assert viewer_title(browser) == "photo 0"
    browser.press(Keys.ARROW_RIGHT)
    assert viewer_title(browser) == "photo 1"
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert viewer_title(browser) == "photo 4"  # from the first to the last; the missing image is left out
    fitting = picture_width(browser)
    browser.press("+", "+", "+", "+")
    browser.wait(lambda: picture_width(browser) == pytest.approx(1.5**4 * fitting, rel=0.01))
    x, y = scroll(browser)
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    browser.wait(lambda: scroll(browser) == [x + 80, y + 160])
    browser.press("-")
    browser.wait(lambda: picture_width(browser) == pytest.approx(1.5**3 * fitting, rel=0.01))
    browser.press("0")
    browser.wait(lambda: picture_width(browser) == pytest.approx(fitting, rel=0.01))
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: viewer_title(browser) is None)
    # The focus returns to the picture that was shown last.
    focused = "return document.activeElement.closest('.card').querySelector('.card-title').textContent"
    browser.wait(lambda: browser.run(focused) == "photo 4")
    assert is_quiet(browser)


def test_the_viewer_goes_through_the_images_that_match_the_filters(browser: Browser, page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    browser.open(page)
    Select(browser.find("#objects select")).select_by_value("bird")
    browser.click("#objects .card:nth-child(4) .panes")
    assert browser.texts(".viewer-count") == ["1 of 1"]
    browser.click(".viewer [aria-label='Next image']")
    assert viewer_title(browser) == "photo 3"


def test_maps_are_named_at_the_pointer_and_fade(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(page)
    browser.click("#maps-gallery .card:nth-child(2) .panes")
    assert browser.texts(".viewer .pane-name") == ["Truth", "Prediction"]  # errors are off at first
    browser.click(".viewer [data-side]")
    assert browser.texts(".viewer .pane-name") == []

    picture = browser.find(".viewer .picture")

    def point(column_: int) -> None:
        offset = round((column_ - 120) / 240 * picture.size["width"])
        ActionChains(browser.driver).move_to_element_with_offset(picture, offset, 0).perform()

    # The border between the first two classes is at a third of the width, and that of the prediction 20 pixels before.
    # Errors are named although they are not shown.
    for column_, text in (
        (10, "Truth: sky, Prediction: sky"),
        (70, "Truth: sky, Prediction: road, Errors: wrong"),
        (150, "Truth: road, Prediction: tree, Errors: wrong"),
        (235, "Prediction: sky, Errors: wrong"),
    ):
        point(column_)
        browser.wait(lambda text=text: browser.texts(".viewer-point") == [text])
    assert browser.texts(".viewer .gallery-colors li") == ["sky", "road", "tree"]
    browser.click(".viewer [data-group='0']")
    browser.click(".viewer [data-group='2']")
    assert browser.texts(".viewer .gallery-colors li") == ["sky", "road", "tree", "wrong"]
    point(70)
    browser.wait(lambda: browser.texts(".viewer-point") == ["Truth: sky, Prediction: road, Errors: wrong"])
    opacity = "return getComputedStyle(document.querySelector('.viewer .layer:not([hidden])')).opacity"
    assert browser.run(opacity) == "0.6"
    fade = "const e = document.querySelector('.viewer [type=range]'); e.value = 20;"
    browser.run(fade + "e.dispatchEvent(new Event('input', {bubbles: true}))")
    assert browser.run(opacity) == "0.2"
    assert browser.run("return document.querySelector('#maps-gallery [type=range]').value") == "20"
    assert is_quiet(browser)


def test_the_theme_switch(browser: Browser, page: Path) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    light = browser.run(background)
    try:
        browser.click("#theme")
        assert browser.run(background) != light
        assert browser.find("#theme").get_attribute("aria-pressed") == "true"
        browser.driver.refresh()
        assert browser.run(background) != light  # the page remembers the choice
        browser.click("#theme")
        assert browser.run(background) == light
    finally:
        browser.run("localStorage.clear()")
    assert is_quiet(browser)


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_names_are_shown_as_text(browser: Browser, tmp_path: Path, width: int) -> None:
    path = str(write_image(tmp_path / "a.jpg", 0, height=180, width=240))
    indices = np.zeros((18, 24), np.uint8)
    cards = [
        Card(
            path,
            name,
            name,
            [name],
            [Shape((20, 90, 90, 170), "missed", name)],
            [Layer(name, indices, PALETTE, [name])],
        )
        for name in HOSTILE_NAMES
    ]
    columns = [("class", "text"), ("AP", "score")]
    sections = [
        Section("classes", HOSTILE_NAMES[0], table("per-class", columns, [[name, 0.5] for name in HOSTILE_NAMES])),
        Section("worst", "Worst images", gallery("objects", cards, filters=[("class", HOSTILE_NAMES)])),
    ]
    page = tmp_path / "report.html"
    page.write_text(render_page(HOSTILE_NAMES[1], [("Data", HOSTILE_NAMES[0])], [], sections), encoding="utf-8")
    browser.open(page, width=width)
    assert column(browser, 1) == list(HOSTILE_NAMES)
    browser.click("#objects .panes")
    assert viewer_title(browser) == HOSTILE_NAMES[0]
    browser.wait(lambda: browser.texts(".viewer .label") == [HOSTILE_NAMES[0]])
    assert browser.run("return document.querySelectorAll('script').length") == 1
    assert browser.run("return document.querySelectorAll('img:not([src^=\"data:image/\"])').length") == 0
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert is_quiet(browser)
