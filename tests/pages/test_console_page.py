"""The page of the console in a browser: what somebody does there who has never seen it."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from tests.pages.test_console import demo
from tests.support.browser import PATIENCE, open_browser, open_tab
from tests.unit.describe.test_describe import typed_app
from wsdeco import App

MARKUP: Final = """<img src="nowhere" onerror="window.hacked = 1"><script>window.hacked = 1</script>"""
"""What must stay text."""

BIDI: Final = "abc\u202edef"

TOKEN: Final = {"Token": "secret"}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


class Tab:
    """The page of the console in a tab, and what it must not have done at its end."""

    def __init__(self, page: Page, errors: list[str]) -> None:
        self.page = page
        self.errors = errors
        self.violations: list[str] = []
        page.on("console", lambda message: self._look(message.text))

    def _look(self, text: str) -> None:
        if "Content Security Policy" in text or "TrustedHTML" in text:
            self.violations.append(text)

    async def connect(self, path: str, number: int = 1, fields: Mapping[str, str] | None = None) -> "Session":
        await self.page.get_by_role("link", name=path).click()
        form = self.page.get_by_role("region", name=path)
        for label, value in (fields or {}).items():
            await form.get_by_label(label).first.fill(value)
        await form.get_by_role("button", name="Connect").click()
        return Session(self.page.locator(".session").nth(number - 1))

    async def is_clean(self) -> bool:
        return self.errors == [] and self.violations == [] and await self.page.evaluate("typeof hacked") == "undefined"


class Session:
    """One connection of the page."""

    def __init__(self, root: Locator) -> None:
        self.root = root
        self.state = root.get_by_role("status")
        self.lines = root.get_by_role("log").get_by_role("listitem")
        self.text = root.get_by_label("Message", exact=True)

    async def press(self, name: str) -> None:
        await self.root.get_by_role("button", name=name).first.click()

    async def say(self, text: str) -> None:
        await self.text.fill(text)
        await self.text.press("Enter")

    async def see(self, text: str, where: Locator | None = None) -> None:
        await expect(self.lines.last if where is None else where).to_contain_text(text, timeout=PATIENCE * 1000)


@asynccontextmanager
async def console_of(app: App, context: BrowserContext) -> AsyncGenerator[Tab]:
    with run(app) as server:
        page, errors = await open_tab(context, f"{server.http_url}{app.docs}")
        tab = Tab(page, errors)
        yield tab
        assert await tab.is_clean(), (tab.errors, tab.violations)
        await page.close()


def run(app: App) -> Any:
    server = app.run(port=0, background=True)
    assert server is not None
    return server


async def test_it_lists_the_routes_with_what_they_are(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        page = tab.page
        links = page.get_by_role("navigation").get_by_role("link")
        await expect(links).to_contain_text(["/ws", "/rooms/{room}/{n:int}", "/fails", "/both"])
        await expect(page.get_by_role("region", name="/ws Echo")).to_contain_text("<b>Text</b> and binary.")
        await page.get_by_text("Limits", exact=True).click()
        await expect(page.get_by_role("region", name="/ws Echo")).to_contain_text("max_message_size1 MiB")
        await page.get_by_text("Close codes and refusals").click()
        await expect(page.get_by_role("region", name="/ws Echo")).to_contain_text("1012the server shuts down")
        await expect(page.get_by_role("banner")).to_contain_text("4 routes, 0 live connections")
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await expect(page.get_by_role("banner")).to_contain_text("1 live connection", timeout=PATIENCE * 1000)
        await page.goto(re.sub("#.*", "", page.url) + "#/rooms/a%20b/7")
        await expect(page.get_by_label("room (path)")).to_have_value("a b")
        await expect(page.get_by_label("n (path)")).to_have_value("7")


async def test_a_newcomer_connects_sends_and_receives_text_and_json(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.see("Open", echo.state)
        await echo.say("hello")
        await echo.see("hello")
        await expect(echo.lines.last).to_have_class("in")
        await expect(echo.text).to_have_value("")
        await echo.root.get_by_label("JSON").check()
        await echo.text.fill('{"a": [1, {"b": null}]')
        await echo.press("Send")
        await echo.see("This is no JSON", echo.root.get_by_role("alert"))
        await echo.text.fill('{"a": [1, {"b": null}], "c": "d"}')
        await echo.text.press("Control+Enter")
        # What was sent, and the reply, which comes later.
        both = echo.lines.filter(has_text='"c": "d"')
        await expect(both).to_have_count(2)
        folded = both.last.locator("summary").first
        await expect(folded).to_have_text('{"a": [1, {"b": null}], "c": "d"}')
        await folded.click()
        await echo.see('c: "d"')
        await both.last.get_by_text("a: [2]").click()
        await echo.see("0: 1")


async def test_a_typed_message_is_sent_by_its_form(browser: Browser) -> None:
    async with console_of(typed_app(), await browser.new_context()) as tab:
        game = await tab.connect("/game")
        await game.see("Connected")
        await expect(game.root.get_by_label("JSON")).to_be_checked()
        form = game.root.get_by_role("group", name="Form of the message")
        await form.get_by_label("to *").fill('{"x": 1.5}')
        await form.get_by_label("piece *").select_option("pawn")
        await form.get_by_label("fast").check()
        await form.get_by_label("note").fill("a b")
        await game.press("Send")
        await game.see("Joined")
        await game.see("Move(to=Point(x=1.5, y=0.0), piece='pawn', fast=True, note='a b')")
        await game.root.get_by_label("Type of the message").select_option("Leave")
        await expect(game.text).to_have_value(re.compile('"type": "Leave"'))
        await game.press("Send")
        await game.see("Leave(why='tired')")
        await tab.page.get_by_text("Messages", exact=True).click()
        await tab.page.get_by_role("region", name="/game").get_by_text("One step.").click()
        await expect(tab.page.get_by_role("region", name="/game")).to_contain_text("properties: {5}")


async def test_what_was_sent_before_is_at_the_arrow_keys(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        for text in ("one", "two", "two"):
            await echo.say(text)
        await echo.text.fill("draft")
        for key, text in (("Up", "two"), ("Up", "one"), ("Up", "one"), ("Down", "two"), ("Down", "draft")):
            await echo.text.press(f"Arrow{key}")
            await expect(echo.text).to_have_value(text)


async def test_path_parameters_query_subprotocol_and_token_reach_the_handler(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        given = {"room (path)": "a b", "n (path)": "7", "Query": "x=1", **TOKEN}
        room = await tab.connect("/rooms/{room}/{n:int}", 1, given)
        await room.see("a b 7")
        await room.see("speaks chat.v2", room.state)
        await expect(tab.page.get_by_text("?x=1&token=…")).to_be_visible()


async def test_a_refusal_is_shown_with_its_cause(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        given = {"room (path)": "a", "n (path)": "1"}
        room = await tab.connect("/rooms/{room}/{n:int}", 1, given)
        await room.see("Refused with HTTP 401: The token is missing, or wrong.", room.state)
        first = await tab.connect("/rooms/{room}/{n:int}", 2, given | TOKEN)
        await first.see("a 1")
        full = await tab.connect("/rooms/{room}/{n:int}", 3, given | TOKEN)
        await full.see("Refused with HTTP 503: Service Unavailable", full.state)
        await full.press("Remove")
        await first.press("Close")
        await first.see("Closed with 1000 (normal end)", first.state)


async def test_a_close_code_is_told_in_words_and_the_connection_comes_back(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.say("bye")
        await echo.see("Closed with 4001 (a code of the application): as you wish", echo.state)
        await echo.text.fill("kept")
        await echo.text.press("Enter")
        await echo.see("Not connected", echo.root.get_by_role("alert"))
        await expect(echo.text).to_have_value("kept")
        await echo.press("Reconnect")
        await echo.see("Welcome!")
        await echo.text.press("Enter")
        await echo.see("kept")


async def test_a_server_that_is_gone_is_told_from_one_that_refuses(browser: Browser) -> None:
    context = await browser.new_context()
    with run(app := demo()) as server:
        page, errors = await open_tab(context, f"{server.http_url}/docs")
        tab = Tab(page, errors)
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await asyncio.to_thread(server.stop)
        await echo.see("Closed with 1012 (the server restarts)", echo.state)
        await echo.press("Reconnect")
        await echo.see("The server does not answer.", echo.state)
        await expect(page.get_by_role("banner")).to_contain_text("does not answer", timeout=PATIENCE * 1000)
    again = app.run(port=server.port, background=True)
    assert again is not None
    with again:
        await echo.press("Reconnect")
        await echo.see("Welcome!")
        assert await tab.is_clean()
        await context.close()


async def test_two_connections_side_by_side(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context(viewport={"width": 1280, "height": 900})) as tab:
        one, two = await tab.connect("/ws"), await tab.connect("/ws", 2)
        for each, text in ((one, "first"), (two, "second")):
            await each.see("Welcome!")
            await each.say(text)
            await each.see(text)
        await expect(one.root.get_by_role("log")).not_to_contain_text("second")
        boxes = [await each.root.bounding_box() for each in (one, two)]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


async def test_a_file_is_sent_as_one_binary_message(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.root.get_by_label("File", exact=True).check()
        await echo.press("Send")
        await echo.see("Choose a file first", echo.root.get_by_role("alert"))
        file: Any = {"name": "file.bin", "mimeType": "application/octet-stream", "buffer": bytes(range(256)) * 2}
        await echo.root.locator("input[type=file]").set_input_files(file)
        await echo.press("Send")
        await echo.see("512 B, binary")
        await echo.see("00 01 02 03")
        await expect(echo.lines.last).to_have_class("in")


async def test_a_session_is_exported_as_text(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.say("hello")
        await expect(echo.lines).to_have_count(4)
        async with tab.page.expect_download() as download:
            await echo.press("Export")
        text = await asyncio.to_thread((await (await download.value).path()).read_text, "utf-8")
        assert re.sub(r"\d{4}-\S+Z", "T", text).splitlines()[1:] == [
            "T - Connected",
            "T < [8 B] Welcome!",
            "T > [5 B] hello",
            "T < [5 B] hello",
        ]
        await echo.press("Clear")
        await expect(echo.lines).to_have_count(0)


async def test_markup_and_bidi_stay_text(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        for sent, shown in ((MARKUP, MARKUP), (BIDI, "abc\\u{202e}def"), (json.dumps([MARKUP]), "onerror")):
            await echo.say(sent)
            await echo.see(shown)
        # The greeting, and each with its reply.
        await expect(echo.lines).to_have_count(8)
        await echo.lines.last.locator("summary").click()
        await echo.see("hacked = 1</script>")
        await expect(echo.root.locator("img, script")).to_have_count(0)


async def test_a_message_of_1_mib_does_not_freeze_the_tab(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.say("x" * (1 << 20))
        await echo.see("1 MiB")
        await echo.see("characters left")
        assert len(await echo.lines.last.inner_text()) < 3000
        await echo.say("next")
        await echo.see("next")
        await echo.lines.nth(3).get_by_role("button", name="Show more").click()
        await expect(echo.lines.nth(3).locator("pre")).to_have_text(re.compile("x{60000}"))


async def test_a_flood_is_shown_without_falling_behind(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.say("flood")
        await echo.see("the end")
        await echo.see("5,002 received", echo.root)
        await echo.see("4,504 older dropped", echo.root)
        assert await echo.lines.count() == 500
        log = echo.root.get_by_role("log")
        assert await log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_it_fits_its_window_and_can_be_read(width: int, scheme: Any, browser: Browser) -> None:
    context = await browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    async with console_of(demo(), context) as tab:
        echo = await tab.connect("/ws")
        await echo.see("Welcome!")
        await echo.say("x" * 500)
        await echo.see("500 B")
        assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width
        for place in ("body", ".quiet", ".state", ".log .in .way", "button.main", "nav code"):
            assert await tab.page.locator(place).first.evaluate(CONTRAST) >= 4.5, place


CONTRAST: Final = """element => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = channels(color).map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const colors = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const [dark, bright] = colors.map(light).sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
}"""
"""Contrast of a text, as WCAG 2.2 computes it (1.4.3 asks for 4.5)."""


async def test_every_control_has_a_name_and_the_keyboard_suffices(browser: Browser) -> None:
    async with console_of(demo(), await browser.new_context()) as tab:
        page = tab.page
        await page.get_by_role("navigation").get_by_role("link", name="/ws").focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Connect").focus()
        await page.keyboard.press("Enter")
        echo = Session(page.locator(".session"))
        await echo.see("Welcome!")
        await expect(echo.text).to_be_focused()
        await page.keyboard.type("typed")
        await page.keyboard.press("Enter")
        await echo.see("typed")
        unnamed = await page.evaluate("""[...document.querySelectorAll("input, textarea, select, button, a")].filter(
            each => !each.textContent.trim() && !each.labels?.length && !each.ariaLabel).map(each => each.outerHTML)""")
        assert unnamed == []
