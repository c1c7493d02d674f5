"""The dashboard in a real browser: signing in, filters, keys, following, copying, both themes, no message in the console."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from agents.commands import Starter
from tests.gateway.test_ui_runs import run_service
from tests.gateway.ui_browser import chrome_options
from tests.gateway.ui_world import World, good_call, make_world, refused_call, serving

T = TypeVar("T")
pytestmark = pytest.mark.browser


class Page:
    """A browser with what the tests say often."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver, self.base = driver, base

    def open(self, path: str) -> None:
        """Go to a path."""
        self.driver.get(self.base + path)

    def find(self, selector: str) -> WebElement:
        """The first element of a selector, waited for."""
        return self.until(lambda: next(iter(self.all(selector)), None))

    def all(self, selector: str) -> list[WebElement]:
        """All elements of a selector, now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], T]) -> T:
        """Wait for something true; an element that the page replaced between two looks is looked for again."""
        replaced = [StaleElementReferenceException]
        return WebDriverWait(self.driver, 10, 0.05, replaced).until(lambda _: condition())

    def keys(self, text: str) -> None:
        """Type without a field."""
        self.driver.switch_to.active_element.send_keys(text)

    def follow(self, on: bool) -> None:
        """Choose whether lists follow new calls, for the pages opened from here on."""
        self.driver.execute_script("localStorage.setItem('airi-live', arguments[0])", "1" if on else "0")

    def sign_in(self, key: str) -> None:
        """Through the form."""
        self.open("/ui")
        self.find("#key").send_keys(key + Keys.ENTER)
        self.find("h1")
        self.until(lambda: "/ui/calls" in self.driver.current_url)


@pytest.fixture(scope="module")
def driver(
    lacks: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[webdriver.Chrome]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        lacks("Chromium with its driver (apt-get install chromium chromium-driver)")
    options = chrome_options(tmp_path_factory.mktemp("chromium"))
    options.binary_location = chromium
    made = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield made
    made.quit()


@pytest.fixture
def world(home: Path, redis_url: str) -> Iterator[World]:
    made = make_world(home, redis_url, run_service(home))
    writer = subprocess.Popen([sys.executable, "-m", "observability.writer"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 15
    while not (made.settings.sockets / "writer-http.sock").exists():
        assert time.monotonic() < deadline, "the writer did not start"
        time.sleep(0.02)
    yield made
    writer.terminate()
    writer.wait(15)


@pytest.fixture
def page(world: World, driver: webdriver.Chrome) -> Iterator[Page]:
    """Signed in; the browser's console must stay silent."""
    with serving(world.app) as base:
        made = Page(driver, base)
        driver.delete_all_cookies()
        made.sign_in(world.keys["org_admin"])
        made.follow(False)
        driver.get_log("browser")
        yield made
        messages = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert messages == [], messages


def test_filters_live_in_the_address(world: World, page: Page) -> None:
    world.write(
        good_call(alias="m1", model="m1"), good_call(alias="m2", model="m2"), refused_call(alias="m1")
    )
    page.open("/ui/calls")
    assert len(page.all("tr[data-id]")) == 3
    page.find("input[name=model]").send_keys("m1" + Keys.ENTER)
    page.until(lambda: "model=m1" in page.driver.current_url)
    assert len(page.all("tr[data-id]")) == 2
    assert "outcome" not in page.driver.current_url
    page.find("select[name=outcome]").send_keys("Failed")
    page.until(lambda: "outcome=error" in page.driver.current_url)
    assert len(page.all("tr[data-id]")) == 1
    page.find("a.chip").click()
    page.until(lambda: "model=m1" not in page.driver.current_url)
    page.driver.back()
    page.until(lambda: "model=m1" in page.driver.current_url)


def test_keys_move_and_open(world: World, page: Page) -> None:
    world.write(*[good_call() for _ in range(3)])
    page.open("/ui/calls")
    page.keys("j")
    page.keys("j")
    rows = page.all("tr[data-id]")
    assert [("selected" in (row.get_attribute("class") or "")) for row in rows] == [False, True, False]
    page.keys("k")
    assert "selected" in (page.all("tr[data-id]")[0].get_attribute("class") or "")
    page.keys(Keys.ENTER)
    page.until(lambda: "/ui/traces/" in page.driver.current_url)
    page.keys("u")
    page.until(lambda: "/ui/calls" in page.driver.current_url)
    page.keys("/")
    assert page.driver.switch_to.active_element.get_attribute("name") == "q"


def test_new_calls_appear_while_following(world: World, page: Page) -> None:
    world.write(good_call())
    page.follow(True)
    page.open("/ui/calls?since=1h")
    live = page.find("[data-live]")
    assert live.get_attribute("aria-pressed") == "true"
    late = good_call(started_unix_ns=time.time_ns())
    world.write(late)
    page.until(lambda: len(page.all("tr[data-id]")) == 2)
    assert "fresh" in (page.all("tr[data-id]")[0].get_attribute("class") or "")
    live.click()
    page.driver.refresh()
    assert page.find("[data-live]").get_attribute("aria-pressed") == "false"


def test_a_trace_explains_itself(world: World, page: Page) -> None:
    record = good_call()
    world.write(record)
    page.open("/ui/calls")
    page.find("tr[data-id] td:nth-child(3)").click()
    page.until(lambda: record.trace_id in page.driver.current_url)
    stages = [item.get_attribute("data-stage") for item in page.all(".timeline > li")]
    assert stages == ["auth", "limits", "policy", "route", "attempts", "price"]
    bars = [rect for rect in page.all(".waterfall rect") if rect.size["width"] > 0]
    assert len(bars) >= 8
    widths = [lane.size["width"] for lane in page.all(".waterfall .lane")]
    assert min(widths) > 200
    assert f'"model": "{record.model}"' in (page.find("#curl").get_attribute("textContent") or "")
    page.find("[data-copy-from=curl]").click()
    page.until(lambda: page.find("[data-copy-from=curl]").text in ("copied", "press Ctrl+C"))


def test_light_and_dark(world: World, page: Page) -> None:
    def background() -> str:
        return str(
            page.driver.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
        )

    page.open("/ui/calls")
    before = background()
    page.find("[data-theme-switch]").click()
    page.until(lambda: background() != before)
    after = background()
    page.driver.refresh()
    assert background() == after
    page.find("[data-theme-switch]").click()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(world: World, page: Page, theme: str) -> None:
    """Contrast by WCAG 2: 4.5 to 1 for every visible text of the list and of a trace."""
    record = refused_call()
    world.write(record, good_call(), good_call(status=502, error_code="upstream_error"))
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}", f"/ui/traces/{world.records[1].trace_id}"):
        page.open(path)
        page.driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        assert page.driver.execute_script(_CONTRAST) == []


def test_every_control_has_a_name(world: World, page: Page) -> None:
    record = good_call()
    world.write(record)
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}"):
        page.open(path)
        page.driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        for control in page.all("button, input:not([type=hidden]), select, a[href]"):
            assert control.accessible_name, control.get_attribute("outerHTML")


def test_a_narrow_window_does_not_scroll_sideways(world: World, page: Page) -> None:
    record = good_call()
    world.write(record)
    page.driver.set_window_size(500, 900)
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}"):
        page.open(path)
        assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.driver.set_window_size(1400, 1000)


def test_a_run_is_approved_on_its_page(world: World, page: Page) -> None:
    run_id, _ = world.services.run_service.start("triage", {"ticket": "T-1"}, Starter("acme", "search", "k"))
    page.open(f"/ui/runs/{run_id}")
    assert page.find('[data-step="ask"]').get_attribute("data-step-state") == "waiting"
    assert page.driver.execute_script(_CONTRAST) == []
    page.find("input[name=comment]").send_keys("fine")
    page.find("button[value=approve]").click()
    page.until(lambda: page.find('[data-step="ask"]').get_attribute("data-step-state") == "succeeded")
    page.driver.execute_script("window.confirm = () => true")
    page.find("button.danger").click()
    page.until(lambda: page.find("[data-state]").text in ("cancelled", "stopping"))


_CONTRAST = """
const bad = [];
const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return {r: m[0], g: m[1], b: m[2], a: m[3] ?? 1}; };
const over = (f, b) => ({r: f.r*f.a+b.r*(1-f.a), g: f.g*f.a+b.g*(1-f.a), b: f.b*f.a+b.b*(1-f.a), a: 1});
const lum = ({r, g, b}) => [r, g, b].map(v => v/255).map(v => v <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4)
  .reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n; (n = walk.nextNode());) {
  const e = n.parentElement;
  if (!n.textContent.trim() || e.closest(".unseen, .skip, script, title, option, datalist, details:not([open])")) continue;
  const grounds = [];
  for (let p = e; p; p = p.parentElement) grounds.push(parse(getComputedStyle(p).backgroundColor));
  let ground = {r: 255, g: 255, b: 255, a: 1};
  for (const g of grounds.reverse()) ground = over(g, ground);
  const ink = over(parse(getComputedStyle(e).color), ground);
  const [x, y] = [lum(ink), lum(ground)].sort((a, b) => b - a);
  if ((x + .05) / (y + .05) < 4.5) bad.push([n.textContent.trim().slice(0, 40), ((x + .05) / (y + .05)).toFixed(2)]);
}
return bad;
"""
