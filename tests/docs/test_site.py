"""The documentation site in a browser, where `make docs` has built it: whole, and nothing fetched from outside."""

import pytest

from tests.support.browser import Page, needs_browser, visit
from tests.support.places import ROOT

SITE = ROOT / "out" / "site"

pytestmark = [needs_browser(), pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="needs `make docs`")]


@pytest.mark.parametrize("name", ["index.html", "concepts.html", "api/editors.html"])
def test_a_page_opens_without_errors_or_requests_to_the_outside(name: str):
    async def script(page: Page) -> None:
        assert await page.evaluate("document.querySelector('h1') !== null")
        # The server's part of the navigation, as the reader sees it; the stylesheet has to be in force for that.
        assert await page.evaluate("getComputedStyle(document.querySelector('.md-header')).position") == "sticky"

    page = visit(SITE / name, script)
    assert not page.errors
    assert page.requests
    assert all(request.startswith(("file:", "data:", "blob:")) for request in page.requests)


def test_equations_are_mathematics_in_the_sites_font():
    async def script(page: Page) -> None:
        assert await page.evaluate("document.querySelectorAll('math').length") > 50
        assert await page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px \"STIX Two Math\"'))")
        # A sum with its limits over and under it is taller than a line.
        assert await page.evaluate("document.querySelector('math munderover').getBoundingClientRect().height") > 30
        assert "$$" not in await page.evaluate("document.body.innerText")

    visit(SITE / "concepts.html", script)
