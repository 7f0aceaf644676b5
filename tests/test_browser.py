"""The page as a person sees it: a real browser, headless, without network and without JavaScript.

Debian's package `chromium` is enough, driven by playwright, which downloads no browser here.
"""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from iet_agc.reporting.audit_page import write_report
from tests.audit_folders import noise, write_audit

#: Flags with which Chromium starts as root, in a container, and calls nobody.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

WIDTHS = {"phone": 390, "tablet": 800, "desk": 1280}
LONG = "/mnt/a_very_long_volume_name/" + "licensed_photographs_" * 8

#: All text that is seen, with its colour, and the colours of the boxes that it lies in, innermost first.
TEXTS = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), box = walker.currentNode.parentElement;
    if (!text || !box.checkVisibility()) continue;
    const style = getComputedStyle(box), behind = [], svg = box.namespaceURI.endsWith("svg");
    for (let each = box; each; each = each.parentElement) behind.push(getComputedStyle(each).backgroundColor);
    found.push({ text, behind, colour: svg ? style.fill : style.color });
  }
  return found;
}"""


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium is installed, such as Debian's package chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of every kind by name."""
    out = tmp_path_factory.mktemp("pages")
    photo = noise(20, (3, 32, 32), 5)
    audits = {
        "full": write_audit(out / "full", train=photo, extractor="big-net", spaces=("big-net", "other")),
        "plain": write_audit(out / "plain", held_out=0, record=False, spaces=(), pictures=6),
        "few": write_audit(out / "few", held_out=60, copies=0, pictures=6, record=False),
        "warned": write_audit(out / "warned", files=f"<i>{LONG}/" * 2, warned=True, pictures=6),
        "large": write_audit(out / "large", train=noise(6, (3, 160, 120), 6), record=False, spaces=(), pictures=3),
    }
    written = {name: write_report({name: one.path}, out / f"{name}.html") for name, one in audits.items()}
    names: dict[str, str] = dict.fromkeys(("train", "samples", "held_out"), LONG)
    long = write_audit(out / "long", names=names, spaces=(LONG,), pictures=6, record=False)
    several = {LONG + "1": long.path, LONG + "2": audits["plain"].path, "third": audits["few"].path}
    return written | {"several": write_report(several, out / "several.html", title=LONG)}


@pytest.fixture(scope="module", params=["full", "plain", "few", "warned", "large", "several"])
def opened(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """A page, opened with JavaScript off, and what it asked for and complained of."""
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("console", lambda said: page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(pages[request.param].as_uri())
    yield page
    context.close()


def test_nothing_is_asked_of_a_network_and_nothing_is_wrong(opened: Any) -> None:
    asked = [url for url in opened.asked if not url.startswith("data:")]
    assert asked == [opened.url]
    assert opened.url.startswith("file:")
    assert opened.complaints == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    wide, seen = opened.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert seen == width
    assert wide <= seen
    off = opened.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, h4, p, img, svg, pre, li, figcaption")]
        .filter(each => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1)
        .map(each => each.outerHTML.slice(0, 80))"""
    )
    assert off == []


def test_tables_fit_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["full"].as_uri())
    fits = page.evaluate(
        "() => [...document.querySelectorAll('.scroll')].filter(each => each.checkVisibility())"
        ".map(each => [each.ariaLabel, each.scrollWidth - each.clientWidth])"
    )
    assert len(fits) == 10
    assert [label for label, beyond in fits if beyond > 0] == []
    page.close()


def test_every_picture_is_loaded_named_and_large_enough(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    images = opened.evaluate(
        """() => [...document.images].map(each => ({
            alt: each.alt, pixels: each.naturalWidth, loaded: each.complete, seen: each.checkVisibility(),
            width: each.getBoundingClientRect().width }))"""
    )
    assert images
    assert all(image["alt"] and image["loaded"] and image["pixels"] > 0 for image in images)
    assert min(image["width"] for image in images if image["seen"]) >= 96


def test_headings_and_verdict_stand_in_order(opened: Any) -> None:
    levels = opened.evaluate("() => [...document.querySelectorAll('h1, h2, h3, h4, h5')].map(each => +each.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = opened.evaluate("() => [...document.querySelectorAll('[role=region]')].map(each => each.ariaLabel)")
    assert len(names) == len(set(names))


def test_the_point_is_on_the_first_screen(browser: Any, pages: dict[str, Path]) -> None:
    for size in ({"width": 390, "height": 844}, {"width": 1000, "height": 900}):
        page = browser.new_page(viewport=size)
        page.goto(pages["full"].as_uri())
        assert page.locator(".label").inner_text() == "Copies found"
        for part in (".verdict", ".says", ".facts"):
            box = page.locator(part).first.bounding_box()
            assert box["y"] + box["height"] <= size["height"]
        page.close()


def test_warnings_are_on_the_first_screen_and_on_paper(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["warned"].as_uri())
    warning = page.locator(".verdict .warning")
    assert "are near copies of training images" in warning.inner_text()
    box = warning.bounding_box()
    assert box["y"] + box["height"] <= 844
    page.emulate_media(media="print")
    assert warning.is_visible()
    assert warning.evaluate("each => getComputedStyle(each).printColorAdjust") == "exact"
    page.close()


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance by WCAG 2.2 of an sRGB colour, 0 to 255."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgba(text: str) -> tuple[float, ...]:
    parts = [float(part) for part in re.findall(r"[\d.]+", text)]
    return (*parts[:3], parts[3] if len(parts) > 3 else 1.0)


def background(behind: list[str]) -> tuple[float, ...]:
    colour = (255.0, 255.0, 255.0)
    for layer in reversed([rgba(each) for each in behind]):
        colour = tuple(layer[3] * top + (1 - layer[3]) * below for top, below in zip(layer, colour, strict=False))
    return colour


def test_contrast_is_measured_as_wcag_does() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # the well-known #777
    assert background(["rgba(0, 0, 0, 0.5)", "rgb(255, 255, 255)"]) == (127.5, 127.5, 127.5)


def test_text_is_dark_enough(opened: Any) -> None:
    texts = opened.evaluate(TEXTS)
    assert len(texts) > 50
    weak = {
        (text["text"][:40], text["colour"])
        for text in texts
        if contrast(rgba(text["colour"])[:3], background(text["behind"])) < 4.5
    }
    assert weak == set()


def test_text_is_not_too_small(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    sizes = opened.evaluate(
        """() => [...document.querySelectorAll("body *:not(svg *)")].filter(each => each.textContent.trim())
        .map(each => parseFloat(getComputedStyle(each).fontSize))"""
    )
    assert min(sizes) >= 11
    charts = opened.evaluate(
        """() => [...document.querySelectorAll("svg text")].filter(each => each.checkVisibility()).map(each => {
            const scale = each.getScreenCTM();
            return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(scale.a, scale.b); })"""
    )
    assert min(charts) >= 9


def test_more_opens_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["full"].as_uri())
    more = page.locator("details").first
    assert not more.locator("img").first.is_visible()
    more.locator("summary").click()
    assert more.locator("img").first.is_visible()
    context.close()


def test_print_has_everything_on_pages(opened: Any) -> None:
    opened.emulate_media(media="print")
    hidden = opened.evaluate("() => [...document.images].filter(each => !each.checkVisibility()).length")
    opened.emulate_media(media="screen")
    assert hidden == 0
    pdf = opened.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 2 <= sheets <= 30
