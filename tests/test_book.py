"""The built book in a browser: from disk, with the network cut off.

Needs Debian's chromium and a built book (``make book``); says so where either is missing.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
SITE = Path(os.environ.get("LNLSR_SITE", ROOT / "book" / "_build" / "html"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    # Sphinx lists modules there whose source it did not write out; nothing leads to that page
    if "_static" not in path.parts and path.relative_to(SITE).as_posix() != "_modules/index.html"
)
CARDS = [page for page in PAGES if page.startswith("results/")]
SOURCES = [page for page in PAGES if page.startswith("_modules/")]
READ = [page for page in PAGES if page not in CARDS and page not in SOURCES]
# Of pages that are made from one pattern, a few are opened.
OPENED = READ + CARDS[:3] + SOURCES[:2]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
    pytest.mark.skipif(not PAGES, reason="needs the built book (make book)"),
]


# Whether a page is loaded and its formulas are drawn; one that leads on to another never is.
READY = """(() => {
  if (document.readyState !== "complete") return 0;
  if (document.querySelector("meta[http-equiv=refresh i]")) return 0;
  const drawn = window.MathJax && MathJax.startup && MathJax.startup.promise;
  return drawn ? drawn.then(() => 1) : 1;
})()"""


class NavigatedError(Exception):
    """The page that was asked has given way to another."""


class Browser:
    """Headless Chromium, spoken to by its debugging protocol over one WebSocket."""

    def __init__(self, folder: Path) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run"]
        # the network is cut off: no name resolves
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
        self.process = subprocess.Popen(
            [str(CHROMIUM), *options, "about:blank"], stderr=subprocess.DEVNULL
        )
        port = folder / "DevToolsActivePort"
        for _ in range(600):
            if port.exists() and port.read_text().strip():
                break
            time.sleep(0.1)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            (target,) = [one for one in json.load(answer) if one["type"] == "page"]
        url = urlsplit(target["webSocketDebuggerUrl"])
        self.socket = socket.create_connection((url.hostname, url.port), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        self.count, self.events = 0, []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _read(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            parts += self.socket.recv(size - len(parts))
        return parts

    def _receive(self) -> dict:
        text = b""
        while True:
            first, second = self._read(2)
            size = second & 127
            if size > 125:
                size = struct.unpack(
                    ">H" if size == 126 else ">Q", self._read(2 if size == 126 else 8)
                )[0]
            text += self._read(size)
            if first & 128:
                return json.loads(text)

    def call(self, method: str, **params) -> dict:
        self.count += 1
        message = json.dumps({"id": self.count, "method": method, "params": params}).encode()
        size = len(message)
        head = (
            bytes([129, 128 | size])
            if size < 126
            else bytes([129, 254]) + struct.pack(">H", size)
            if size < 65536
            else bytes([129, 255]) + struct.pack(">Q", size)
        )
        self.socket.sendall(head + b"\0\0\0\0" + message)
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                if "navigated" in str(answer.get("error")):
                    raise NavigatedError
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, script: str):
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, page: str, width: int = 1400, dark: bool = False, query: str = "") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        theme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": theme}],
        )
        self.events.clear()
        self.call("Page.navigate", url=(SITE / page).as_uri() + query)
        for _ in range(1200):
            with contextlib.suppress(NavigatedError):
                if self.evaluate(READY):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{page} is not there after a minute")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


PROBLEMS = """(() => {
  const said = [];
  for (const image of document.querySelectorAll("img, svg[role=img]")) {
    if (image.closest("mjx-container, .math, .toggler")) continue;
    const alt = image.getAttribute("alt") ?? image.getAttribute("aria-label") ?? "";
    const words = alt.trim().split(/\\s+/).length;
    if (words < 3) said.push("no alt: " + image.outerHTML.slice(0, 200));
    if (image.tagName === "IMG" && !image.naturalWidth) said.push("image not shown: " + image.src);
  }
  for (const math of document.querySelectorAll("span.math, div.math")) {
    if (!math.querySelector("mjx-container")) said.push("formula not drawn: " + math.textContent);
  }
  if (document.querySelector("[data-mjx-error]")) said.push("a formula has an error");
  if (!document.title) said.push("no title");
  const made = /search|genindex|py-modindex|_modules/.test(location.pathname);  // by Sphinx
  if (!made && !document.querySelector("meta[name=description]")) said.push("no description");
  return said;
})()"""


@pytest.mark.parametrize("page", OPENED)
def test_a_page_opens_whole_from_disk(browser, page):
    browser.open(page)
    assert browser.evaluate(PROBLEMS) == []
    for event in browser.events:
        params = event.get("params", {})
        assert event["method"] != "Runtime.exceptionThrown", params
        if event["method"] == "Log.entryAdded":
            assert params["entry"]["level"] != "error", params["entry"]
        if event["method"] == "Runtime.consoleAPICalled":
            assert params["type"] != "error", params
        if event["method"] == "Network.requestWillBeSent":
            assert params["request"]["url"].startswith(("file:", "data:", "blob:", "about:"))


@pytest.mark.parametrize("page", OPENED)
def test_a_page_is_no_wider_than_a_phone(browser, page):
    browser.open(page, width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("page", [page for page in READ if page.startswith("notebooks/")])
def test_figures_and_tables_have_no_panel_of_their_own_in_the_dark(browser, page):
    browser.open(page, dark=True)
    browser.evaluate("document.documentElement.dataset.theme = 'dark'")
    pale = browser.evaluate(
        """[...document.querySelectorAll("figure.panels, svg.panel, table.plain, table.plain td")]
        .map((one) => getComputedStyle(one).backgroundColor)
        .filter((c) => !["rgba(0, 0, 0, 0)", "transparent"].includes(c))"""
    )
    assert pale == []


def test_search_finds_the_sparse_rate(browser):
    browser.open("search.html", query="?q=sparse+rate")
    text = "document.getElementById('search-results').textContent"
    for _ in range(300):  # the results come one by one
        if "Figure 3" in browser.evaluate(text):
            return
        time.sleep(0.1)
    raise AssertionError(browser.evaluate(text))


def test_the_table_of_runs_is_sorted_and_searched(browser):
    browser.open("runs.html")
    column = (
        """[...document.querySelectorAll("#all-runs tbody tr")].map(r => r.cells[6].textContent)"""
    )
    if not browser.evaluate("document.querySelectorAll('#all-runs tbody tr').length"):
        pytest.skip("no run is stored")
    for up in (True, False):
        browser.evaluate("document.querySelectorAll('#all-runs th[scope=col]')[6].click()")
        values = [float(value) for value in browser.evaluate(column)]
        assert values == sorted(values, reverse=not up)
    every, shown = len(values), {}
    for text in ("no such run", "ce_sr"):  # the latter stands in the title of the links alone
        browser.evaluate(
            f"""(() => {{ const field = document.querySelector("input[data-filters]");
            field.value = "{text}"; field.dispatchEvent(new Event("input")); }})()"""
        )
        rows = "[...document.querySelectorAll('#all-runs tbody tr')].filter(r => !r.hidden)"
        shown[text] = browser.evaluate(f"{rows}.length")
        titles = browser.evaluate(f"{rows}.map(r => r.querySelector('a').title)")
        assert all(text in title for title in titles)
    assert shown["no such run"] == 0
    assert 0 < shown["ce_sr"] < every


def anchors(page: Path, known: dict[Path, set[str]] = {}) -> set[str]:  # noqa: B006
    if page not in known:
        known[page] = set(re.findall(r'\b(?:id|name)="([^"]+)"', page.read_text()))
    return known[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    text = (SITE / page).read_text()
    for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
        parts = urlsplit(link.replace("&amp;", "&"))
        if parts.scheme:
            assert parts.scheme in ("http", "https", "mailto"), link
            continue
        target = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
        assert target.exists(), link
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in anchors(target.resolve()), link


def test_no_file_is_heavy_and_the_site_is_light():
    files = [path for path in SITE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    for path in (SITE / "results").rglob("*"):
        assert not path.is_file() or path.stat().st_size < 1e6, path
