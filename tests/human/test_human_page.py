"""The annotators' page in a real headless Chromium: a whole session by keyboard, on a phone, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from driftlens.human import CRITERIA, Comparison, comparison_page, judgements, read_answers
from driftlens.human.answers import checks
from tests.support.browser import Page, needs_browser, visit
from tests.support.comparisons import comparison

pytestmark = needs_browser()
NAMES = [criterion.name for criterion in CRITERIA]
VISIBLE = "['welcome', 'judge', 'finish'].filter((id) => !document.getElementById(id).hidden).join()"
TEXTS = "['text-a', 'text-b'].map((id) => document.getElementById(id).textContent)"


@pytest.fixture
def study(tmp_path: Path) -> Comparison:
    made = comparison()
    (tmp_path / "compare.html").write_bytes(comparison_page(made))
    return made


async def text(page: Page, name: str) -> str:
    return await page.evaluate(f"document.getElementById({name!r}).textContent.trim()")


async def begin(page: Page, name: str) -> None:
    assert await page.evaluate(VISIBLE) == "welcome"
    await page.evaluate(f"document.getElementById('name').focus(); document.getElementById('name').value = {name!r}")
    await page.press("Enter")
    assert await page.evaluate(VISIBLE) == "judge"


def pick(sides: list[str]) -> str:
    """A rule that looks only at what is on the screen: the longer text, or a tie."""
    return "t" if len(sides[0]) == len(sides[1]) else "a" if len(sides[0]) > len(sides[1]) else "b"


async def answer_pair(page: Page) -> dict[str, Any]:
    """Success and fluency by the rule, specificity always a tie."""
    sides = await page.evaluate(TEXTS)
    choice = pick(sides)
    for key in (choice, "t", choice):
        await page.press(key)
    chosen = await page.evaluate(
        "[...document.querySelectorAll('#questions input:checked')].map((input) => input.value)"
    )
    name = {"a": "A", "b": "B", "t": "tie"}
    assert chosen == [name[choice], "tie", name[choice]]
    return {"sides": sides, "choices": chosen}


def test_a_session_by_keyboard_with_a_reload(study: Comparison, tmp_path: Path):
    seen: list[dict[str, Any]] = []
    place = tmp_path / "downloads"
    place.mkdir()
    files: list[Path] = []

    async def session(page: Page) -> None:
        await begin(page, "Ada B.")
        assert await text(page, "place") == "Pair 1 of 22"
        for number in range(10):
            seen.append(await answer_pair(page))
            await page.press("Enter")
            assert await text(page, "place") == f"Pair {number + 2} of 22"
        # Back, to change an answer, and on.
        await page.press("Backspace")
        assert await page.evaluate(TEXTS) == seen[-1]["sides"]
        await page.press("b")  # all three are answered, so this is about the last question
        seen[-1]["choices"][2] = "B"
        await page.press("Enter")
        await page.press("a")  # one of three answers is given when the tab is closed
        await page.reload()
        assert await page.evaluate("document.getElementById('name').value") == "Ada B."
        assert "10 of 22 pairs" in await text(page, "resume")
        await begin(page, "Ada B.")
        assert await text(page, "place") == "Pair 11 of 22"
        assert await page.evaluate("document.querySelectorAll('#questions input:checked').length") == 1
        await page.press("Enter")
        assert "Still open: specificity" in await text(page, "problem")
        # The question that is open has the focus now; the first is answered again with its own key.
        await page.evaluate("document.querySelector('input[name=success]').focus()")
        seen.append(await answer_pair(page))
        for _ in range(11, 22):
            await page.press("Enter")
            seen.append(await answer_pair(page))
        assert await text(page, "next") == "Finish"
        await page.press("Enter")
        assert await page.evaluate(VISIBLE) == "finish"
        await page.evaluate("document.getElementById('comment').focus()")
        await page.command("Input.insertText", text="Fine <b>")
        files.append(await page.download("document.getElementById('download').click()", place))

    page = visit(tmp_path / "compare.html", session)
    assert page.errors == []
    assert all(url.startswith(("file:", "blob:")) for url in page.requests)

    assert files[0].name == "answers-Ada-B.json"
    told = json.loads(files[0].read_text())
    assert told["study"] == study.id
    assert told["comment"] == "Fine <b>"
    items = {item.id: item for item in study.items}
    assert len({answer["item"] for answer in told["answers"]}) == len(items) == 22
    for answer, shown in zip(told["answers"], seen, strict=True):
        item = items[answer["item"]]
        texts = [item.prompt + item.texts[at].rstrip() for at in answer["shown"]]
        assert texts == shown["sides"]
        assert [answer["choices"][name] for name in NAMES] == shown["choices"]
        assert 0 < answer["seconds"] < 60
    # Half of the pairs one way round, half the other.
    assert sum(answer["shown"] == [0, 1] for answer in told["answers"]) == 11

    sheets = read_answers(files)
    assert sheets[0].annotator == "Ada B."
    table = judgements([study], sheets)
    assert len(table) == 60
    # The baseline's texts are the longer ones, so by the rule it wins, but for the answer that was changed.
    success = table[table["criterion"] == "success"]
    assert set(success["outcome"]) == {"loss"}
    assert set(table[table["criterion"] == "specificity"]["outcome"]) == {"tie"}
    assert len(checks([study], sheets)) == 2


def test_texts_are_texts(study: Comparison, tmp_path: Path):
    async def look(page: Page) -> None:
        await begin(page, "x")
        for _ in range(22):
            assert await page.evaluate("document.querySelectorAll('img, main script').length") == 0
            for key in "ttt":
                await page.press(key)
            await page.press("Enter")
        assert await page.evaluate("document.title") == study.title
        assert await page.evaluate("document.querySelector('h1').textContent") == study.title
        # Should something slip through all the same, the policy runs no script but the page's own.
        await page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
        )
        assert await page.evaluate("window.ran") is None

    page = visit(tmp_path / "compare.html", look)
    assert [error for error in page.errors if "Content Security Policy" not in error] == []
    assert len(page.errors) == 1  # the script of the last lines


def test_two_annotators_see_other_orders_and_sides(study: Comparison, tmp_path: Path):
    orders: dict[str, Any] = {}

    async def look(page: Page) -> None:
        for name in ("Ada", "Bo", " ada"):
            await begin(page, name)
            slots = "Object.keys(localStorage).filter((key) => key.includes('/') && key.split('/').length === 3)"
            kept = await page.evaluate(f"{slots}.map((key) => JSON.parse(localStorage[key]))")
            orders.update({each["annotator"]: (each["order"], each["shown"]) for each in kept})
            await page.reload()
        await page.evaluate("localStorage.clear()")
        await page.reload()
        await begin(page, "Ada")
        again = await page.evaluate(
            "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.endsWith('/ada'))])"
        )
        assert (again["order"], again["shown"]) == orders["Ada"]  # seeded: also in another browser

    visit(tmp_path / "compare.html", look)
    assert set(orders) == {"Ada", "Bo"}  # " ada" is Ada, who goes on
    assert orders["Ada"][0] != orders["Bo"][0]
    assert sorted(orders["Ada"][0]) == sorted(orders["Bo"][0])
    assert orders["Ada"][1] != orders["Bo"][1]


def test_on_a_phone(study: Comparison, tmp_path: Path):
    async def look(page: Page) -> None:
        await page.look(width=390, height=844)
        for dark in (False, True):
            await page.look(width=390, height=844, dark=dark)
            await begin(page, f"dark {dark}")
            assert await page.evaluate("document.documentElement.scrollWidth") == 390
            # Everything to be touched is large enough for a finger (WCAG 2.5.5: 44 pixels).
            small = await page.evaluate(
                "[...document.querySelectorAll('#judge label, #judge button.primary, #back')].filter((each) => "
                "each.getBoundingClientRect().height < 44).length"
            )
            assert small == 0
            # By touch, not by keys.
            for name in NAMES:
                await page.evaluate(f"document.querySelector('input[name={name}][value=B]').click()")
            await page.evaluate("document.getElementById('next').click()")
            assert await text(page, "place") == "Pair 2 of 22"
            await page.evaluate("document.getElementById('help').click()")
            assert await page.evaluate("document.getElementById('instructions').open")
            assert await page.evaluate("document.documentElement.scrollWidth") == 390
            await page.reload()

    assert visit(tmp_path / "compare.html", look).errors == []


def test_with_a_screen_reader(study: Comparison, tmp_path: Path):
    """The accessibility tree, which is what a screen reader reads from."""

    async def look(page: Page) -> None:
        await begin(page, "x")
        assert await page.evaluate("document.activeElement.id") == "place"  # a new pair is announced
        await page.command("Accessibility.enable")
        nodes = (await page.command("Accessibility.getFullAXTree"))["nodes"]
        shown = [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        ]
        groups = [name for role, name in shown if role == "radiogroup"]
        assert [name.split("?")[0] for name in groups] == [criterion.question[:-1] for criterion in CRITERIA]
        assert [name for role, name in shown if role == "radio"] == ["Text A", "Tie", "Text B"] * 3
        assert ("article", "Text A") in shown
        assert ("article", "Text B") in shown
        assert all(name for role, name in shown if role in ("button", "progressbar", "textbox", "heading"))
        await page.evaluate("document.getElementById('help').click()")
        await page.evaluate("document.getElementById('shortcuts').click()")
        await page.evaluate("document.getElementById('instructions').close()")
        await page.press("a")
        assert await page.evaluate("document.querySelectorAll('#questions input:checked').length") == 0  # keys are off

    visit(tmp_path / "compare.html", look)
