"""Pages as a person sees them: a real browser, headless, without network; whole without JavaScript, in both schemes.

Debian's package `chromium` is enough, driven by playwright, which downloads no browser here.
"""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iet_agc
from iet_agc.config.board import plan
from iet_agc.metrics.attacks import Attacks, Drawn, against_sampling, attack
from iet_agc.metrics.curve import Losses, recommend
from iet_agc.metrics.membership import correlation, membership, scores
from iet_agc.reporting.attack_page import Shown, render_attack
from iet_agc.reporting.audit_page import write_report
from iet_agc.reporting.board import Failure, board_record, standing
from iet_agc.reporting.board_page import board_page
from iet_agc.reporting.comparison import compare, differences_from_first
from iet_agc.reporting.comparison_page import write_comparison
from iet_agc.reporting.curve_page import write_curve
from iet_agc.reporting.duplicates_page import ShownGroup, ShownImage, render_duplicates
from iet_agc.reporting.membership_page import render_membership
from tests.audit_folders import noise, write_audit
from tests.boards import MINIATURE, board, result
from tests.compared_runs import numbers, seeds, write
from tests.watch_points import point

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
    if (!text || !box.checkVisibility() || box.closest("[aria-hidden]")) continue;
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
    written["comparison"] = compared(out / "compared")
    written["board"] = benched(out / "board")
    written["duplicates"] = duplicates(out / "duplicates.html")
    written["curve"] = curve(out / "curve")
    written["membership"] = membership_page(out / "membership.html")
    written["attack"] = attack_page(out / "attack.html")
    written |= of_groups(out)
    several = {LONG + "1": long.path, LONG + "2": audits["plain"].path, "third": audits["few"].path}
    return written | {"several": write_report(several, out / "several.html", title=LONG)}


def compared(out: Path) -> Path:
    """Of three experiments, one of which has pictures, and one a long name."""
    made = write_audit(out / "made", record=False, spaces=())
    audits = [*seeds(out, "x", [100, 200], [1.0, 2.0]), write(out / LONG[-40:], numbers(5, 3.0)), made.path]
    rows = compare(audits)
    return Path(write_comparison(rows, differences_from_first(rows), out / "comparison")["html"])


def benched(out: Path) -> Path:
    """Of a point and a curve, whose runs have pictures, and one failed run with a long reason."""
    made = board(out, f'title = "{LONG}"\n{MINIATURE}')
    first, *cells = plan(made)
    results = [result(cell, 200 // (1 + number), 1.0 + number) for number, cell in enumerate(cells)]
    for cell in cells:
        write_audit(out / cell.folder / "audit", record=False, spaces=(), pictures=12)
    record = board_record(made, [Failure(**standing(first), reason=LONG), *results], {}, {})
    (out / "board.html").write_text(board_page(record, out), encoding="utf-8")
    return out / "board.html"


def curve(out: Path) -> Path:
    losses = Losses(train=0.1, held_out=0.2, gap=0.1, train_bands=(0.1,), held_out_bands=(0.2,), num_images=4)
    points = [point(100 * number, 5 * number, losses=losses) for number in range(1, 13)]
    files = write_curve(points, recommend(points), {"run": LONG, "measured": "measured while it trained"}, out)
    return Path(files["html"])


def membership_page(file: Path) -> Path:
    rng = np.random.default_rng(0)
    mine, real = rng.normal(0.9, 0.1, (120, 20)), rng.normal(1, 0.1, (150, 20))
    timesteps = [25 + 50 * number for number in range(20)]
    own, others = scores(mine, real)
    skips = correlation(own.tolist(), rng.random(120).tolist())
    facts = {"model": "ema", "run": LONG}
    page = render_membership(membership(mine, real, timesteps, 1000), skips, own, others, facts)
    file.write_text(page, encoding="utf-8")
    return file


def attack_page(file: Path) -> Path:
    rng = np.random.default_rng(0)
    mine, real = rng.uniform(0.05, 1, 300), rng.uniform(0.2, 1, 400)
    mine[:4] = 0
    of_train, of_others = (Drawn(np.arange(len(each)), each, len(each)) for each in (mine, real))
    plain = attack("sampling", of_train, of_others, 0.15, 25_000, 40.0, 50)
    redrawing = against_sampling(attack("redrawing", of_train, of_others, 0.3, 1200, 2.0, 50), plain)
    found = Attacks(num_train=300, num_held_out=400, audit_cut=0.3, unit="CPU", attacks=(plain, redrawing))
    pixels = rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    pair = Shown(image=7, multiplicity=40, score=0.0123, trained=pixels[0], drawn=pixels[1])
    facts: dict[str, str | int] = {
        "model": "ema",
        "run": LONG,
        "steps": 50,
        "per_sample": 50,
        "draws": 1,
        "redraw_steps": 4,
    }
    page = render_attack(found, (mine, real), {"sampling": [], "redrawing": [pair] * 5}, facts)
    file.write_text(page, encoding="utf-8")
    return file


def of_groups(out: Path) -> dict[str, Path]:
    """An audit by groups of copies, and the page of a pack of it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (160, 8, 8, 3), dtype=np.uint8)
    near = np.clip(images[:1].astype(int) + rng.integers(-2, 3, (60, 8, 8, 3)), 0, 255).astype(np.uint8)
    real = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    for name, array in (("train", np.concatenate([images, near])), ("samples", near[:9] ^ 1), ("real", real)):
        np.savez(out / f"{name}.npz", images=array)
    parts = [str(out / f"{name}.npz") for name in ("train", "samples", "real")]
    audit = iet_agc.audit(*parts, out=out / "grouped", groups=True, extractors=["pixels"], quiet=True)
    return {"groups": iet_agc.report(audit), "pack": iet_agc.pack(audit, out=out / "pack").folder / "index.html"}


def duplicates(file: Path) -> Path:
    images = [
        ShownImage(f"{LONG}/{n}.png", "differs by 0.3 %, mirrored", n == 0, noise(1, (3, 16, 16), n)[0])
        for n in range(8)
    ]
    groups = [ShownGroup(number, "near", 20, images[: 8 - number]) for number in range(6)]
    shares: dict[str, object] = {"redundant": {"count": 30, "share": 0.3}, "gate": {"fail_above": 0.02, "failed": True}}
    counts = {"images": 100, "unique": 90, "kept": 70, "images_in_groups": 36, "largest_group": 8}
    counts |= {"groups": {"exact": 2, "near": 5}}
    said = {"source": LONG, "near": True, "flips": True, "shape": [3, 16, 16], "converted": False, "sha256": "0" * 64}
    about = {"conventions": {"exact": "equal pixel by pixel"}, "versions": {"iet-agc": "0.1.0", "torch": "2.9.0"}}
    file.write_text(render_duplicates(shares | counts | said | about, groups), encoding="utf-8")
    return file


KINDS = [
    *("full", "plain", "few", "warned", "large", "several", "comparison", "board", "duplicates", "curve", "groups"),
    *("membership", "attack", "pack"),
]


@pytest.fixture(scope="module", params=KINDS)
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
    assert len(fits) == 9
    assert [label for label, beyond in fits if beyond > 0] == []
    page.close()


def test_every_picture_is_loaded_named_and_large_enough(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 844})
    images = opened.evaluate(
        """() => [...document.images].map(each => ({
            alt: each.alt, thumb: !!each.closest(".thumbs"),
            pixels: each.naturalWidth, loaded: each.complete, seen: each.checkVisibility(),
            width: each.getBoundingClientRect().width }))"""
    )
    assert images or opened.query_selector("svg") or opened.url.endswith("/pack/index.html")  # which is text
    assert all(image["alt"] and image["loaded"] and image["pixels"] > 0 for image in images)
    assert min((image["width"] for image in images if image["seen"] and image["thumb"]), default=48) >= 48
    assert min((image["width"] for image in images if image["seen"] and not image["thumb"]), default=96) >= 96


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    texts = opened.evaluate(TEXTS)
    opened.emulate_media(color_scheme="light")
    page = background(texts[0]["behind"])
    assert luminance(page) > 0.9 if scheme == "light" else luminance(page) < 0.02
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
    assert min(charts, default=9) >= 9


def test_more_opens_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["full"].as_uri())
    more = page.locator("main details").first
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
    assert 1 <= sheets <= 30


# The script, and what needs none --------------------------------------------------------------------------


@pytest.fixture
def full(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """The page that has everything, on a desk, with JavaScript; it complains of nothing."""
    page, complaints = browser.new_page(viewport={"width": 1440, "height": 1000}), []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages["full"].as_uri())
    yield page
    page.close()
    assert complaints == []


def test_the_scheme_can_be_chosen_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, color_scheme="light")
    page = context.new_page()
    page.goto(pages["full"].as_uri())
    for scheme, dark in (("dark", True), ("light", False), ("auto", False)):
        page.get_by_label(scheme, exact=True).check(force=True)
        colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (luminance(rgba(colour)[:3]) < 0.02) == dark
    page.get_by_label("dark", exact=True).check(force=True)
    page.emulate_media(media="print")  # paper is white
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()


def test_contents_stay_in_view_on_a_desk_and_open_on_a_phone(full: Any) -> None:
    contents = full.locator(".toc nav")
    full.get_by_role("link", name="Conventions").click()
    assert full.evaluate("() => scrollY") > 1000
    full.wait_for_function("() => document.querySelector('.toc nav').getBoundingClientRect().top >= 0")
    assert contents.is_visible()
    full.set_viewport_size({"width": 390, "height": 844})
    assert not contents.is_visible()
    full.locator(".toc summary").click()
    assert contents.is_visible()


def test_contents_open_what_is_folded(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["comparison"].as_uri())
    table = page.locator("details#runs table")
    assert not table.is_visible()
    link = page.locator(".toc").get_by_role("link", name="Runs")
    for _ in range(2):  # the second time the address is the same
        link.click()
        assert table.is_visible()
        page.locator("details#runs > summary").click()
        assert not table.is_visible()
    page.goto("about:blank")
    page.goto(f"{pages['comparison'].as_uri()}#runs")
    assert page.locator("details#runs table").is_visible()
    page.close()


def test_headings_show_no_absolute_paths(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["several"].as_uri())
    named = [
        text for text in page.locator("h3, h4, h5, summary, .note, caption").all_inner_texts() if LONG[-50:-1] in text
    ]
    assert named
    assert not [text for text in named if "Features of /" in text or "features of /" in text]
    page.close()


def test_pairs_can_be_sorted(full: Any) -> None:
    part = full.locator("[data-orders]").first
    samples = "part => [...part.querySelectorAll('li')].map(each => +each.dataset.sample)"
    assert part.evaluate(samples) == [*range(8), *part.evaluate(samples)[8:]]
    before, first = part.evaluate(samples), part.locator(".gallery").first.locator("li")
    part.locator("select").select_option("sample")
    assert part.evaluate(samples) == sorted(before)
    part.locator("select").select_option("differs")
    differs = part.evaluate("part => [...part.querySelectorAll('li')].map(each => +each.dataset.differs)")
    assert differs == sorted(differs)
    assert first.count() == 6  # the others stay behind "more"
    part.locator("select").select_option("ratio")
    assert part.evaluate(samples) == before


def test_pictures_are_enlarged_by_mouse_and_keys(full: Any) -> None:
    pictures = full.locator(".zooms img")
    pictures.first.click()
    shown = full.locator("dialog img")
    assert shown.bounding_box()["width"] > 600
    assert shown.get_attribute("alt") == pictures.first.get_attribute("alt")
    full.keyboard.press("ArrowRight")
    assert shown.get_attribute("src") == pictures.nth(1).get_attribute("src")
    full.keyboard.press("Escape")
    assert full.locator("dialog").is_hidden()
    pictures.nth(2).focus()
    full.keyboard.press("Enter")
    assert full.locator("dialog").is_visible()
