"""The report in a real browser: opened, watched, and what its paths draw."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from report_data import GRID


def launched() -> Iterator[Any]:
    """Yields a running browser; skips the test where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)],
        )
        yield running
        running.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int, theme: str) -> Iterator[Any]:
    """Opens a page; leaving fails on console errors, script errors and foreign requests."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on("request", lambda request: problems.extend(_foreign(request.url)))
    page.goto(path.as_uri(), wait_until="load")
    yield page
    context.close()
    assert problems == []


def _foreign(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"requested: {url[:100]}"]


def drawn(page: Any, selector: str) -> list[list[int]]:
    """Returns the patches that the path of each card draws, ascending: squares, or runs of them."""
    paths = page.eval_on_selector_all(selector, "all => all.map(p => p.getAttribute('d') || '')")
    found = [re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v", path) for path in paths]
    return [
        sorted(
            int(float(y)) * GRID + int(float(x)) + step
            for x, y, width in runs
            for step in range(max(1, int(float(width))))
        )
        for runs in found
    ]


CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const owners = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility({ visibilityProperty: true }) &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return owners.map((e) => {
    const pair = [parse(getComputedStyle(e).color), ground(e)].map(light).sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), e.tagName + " " + e.textContent.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
}"""
"""Texts whose contrast is below what WCAG 2 asks for (level AA)."""
