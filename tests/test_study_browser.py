"""A person at the study's page: a real Chromium without a window, and the real server in a process of its own."""

import re
import signal
from contextlib import contextmanager

import pytest

from tests.browser import chromium
from veridical.study.load import made_up_study, running
from veridical.study.store import export_rows

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
QUESTIONS = 6
PAUSE_MS = 360  # a choice sooner than 350 ms after the images came is taken for the second half of a double click


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """(study, address) of a server that the tests which do not kill theirs share."""
    study = made_up_study(tmp_path_factory.mktemp("study"), per_pair=60, trials=4, screening=2, size=(240, 320))
    with running(study) as (address, _process):
        yield study, address


@contextmanager
def person(browser, **options):
    """A page of a browser that knows nothing yet. Nothing in it may complain."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        yield page
        # What the browser itself says of a server that is away, or says no, is no fault of the page.
        assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
    finally:
        context.close()


def see(page, section):
    page.wait_for_selector(f"#{section}:not([hidden])")


def begin(page, address):
    page.goto(address)
    see(page, "consent")
    page.check("#agreed")
    page.click("#agree button")
    see(page, "how")
    page.click("#start")
    see(page, "trial")
    page.wait_for_selector("body[data-shown]")


def question(page):
    return page.evaluate("document.body.dataset.shown")


def answer(page, act):
    """Answer by `act`, and wait until the next question is there."""
    before = question(page)
    page.wait_for_timeout(PAUSE_MS)
    act()
    page.wait_for_function("before => document.body.dataset.shown !== before", arg=before)


def rows_of(study, page):
    """The votes of this person, who has come to the last page."""
    see(page, "thanks")
    rater = page.inner_text("#rater")
    return [row for row in export_rows(study) if row["rater"] == rater]


def shown_region(page, what):
    """What of an image is seen in its frame: (scale, left, top, right, bottom), in pixels of the image."""
    return page.evaluate(
        """what => {
          const stage = document.querySelector(`.stage[data-what=${what}]`), image = stage.firstElementChild;
          const a = stage.getBoundingClientRect(), b = image.getBoundingClientRect();
          const scale = b.width / image.naturalWidth;
          return [scale, (a.left - b.left) / scale, (a.top - b.top) / scale,
                  (a.right - b.left) / scale, (a.bottom - b.top) / scale];
        }""",
        what,
    )


def middles(page):
    """(scale, x, y) of each of the three images: the point of the image in the middle of its frame."""
    found = []
    for what in ("left", "reference", "right"):
        scale, left, top, right, bottom = shown_region(page, what)
        found.append((scale, (left + right) / 2, (top + bottom) / 2))
    return found


def assert_together(page):
    one, two, three = middles(page)
    assert one[0] == two[0] == three[0]
    within = 1 / one[0]  # each begins on a pixel of the screen
    assert two == pytest.approx(one, abs=within)
    assert three == pytest.approx(one, abs=within)
    return one


def test_a_whole_session_on_a_desktop_with_a_mouse(browser, shared):
    study, address = shared
    with person(browser, **DESKTOP) as page:
        begin(page, address)
        clicks = []
        for number in range(QUESTIONS):
            assert page.inner_text("#number") == str(number + 1)
            assert page.get_attribute("#progress", "value") == str(number)
            side = "left" if number % 3 else "right"
            clicks.append(1 if side == "left" else 2)
            answer(page, lambda side=side: page.click(f"#choose-{side}"))
        rows = rows_of(study, page)
        assert [row["result"] for row in rows] == clicks
        assert all(0.3 < row["seconds"] < 60 for row in rows)
        assert page.inner_text("#answers") == str(QUESTIONS)
        page.reload()
        see(page, "thanks")


def test_the_images_stand_in_order_and_whole_on_a_desktop(browser, shared):
    with person(browser, **DESKTOP) as page:
        begin(page, shared[1])
        boxes = [page.locator(f".stage[data-what={what}]").bounding_box() for what in ("left", "reference", "right")]
        assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
        assert len({(round(box["width"]), round(box["height"]), box["y"]) for box in boxes}) == 1
        scale, x, y = assert_together(page)
        assert scale == 1  # 320 x 240 px in a frame of 412 px: pixel for pixel
        assert (x, y) == pytest.approx((160, 120), abs=1 / 2)
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        sizes = page.evaluate(
            "[...document.querySelectorAll('.stage img')].map(i => [i.naturalWidth, i.naturalHeight])"
        )
        assert sizes == [[320, 240]] * 3


def test_a_whole_session_on_a_phone_by_touch(browser, shared):
    study, address = shared
    with person(browser, **PHONE) as page:
        begin(page, address)
        frames = {
            what: page.locator(f".stage[data-what={what}]").bounding_box() for what in ("left", "reference", "right")
        }
        assert frames["reference"]["y"] < frames["left"]["y"] == frames["right"]["y"]
        assert frames["left"]["x"] < frames["right"]["x"]
        for box in (*frames.values(), page.locator("#choose-left").bounding_box()):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 375
            assert box["y"] + box["height"] <= 667
        assert page.locator("#choose-left").bounding_box()["height"] >= 44
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert_together(page)
        taps = []
        for number in range(QUESTIONS):
            side = "right" if number % 3 else "left"
            taps.append(1 if side == "left" else 2)
            answer(page, lambda side=side: page.tap(f"#choose-{side}"))
        assert [row["result"] for row in rows_of(study, page)] == taps


def test_a_whole_session_with_the_keyboard_alone(browser, shared):
    study, address = shared
    with person(browser, **DESKTOP) as page:
        page.goto(address)
        see(page, "consent")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is seen
        page.keyboard.press("Enter")
        see(page, "how")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        see(page, "trial")
        page.wait_for_selector("body[data-shown]")
        for key in ("ArrowLeft", "2", "1", "ArrowRight"):
            answer(page, lambda key=key: page.keyboard.press(key))
        page.keyboard.press("p")
        see(page, "paused")
        for _ in range(3):  # the link, Copy, Go on
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        see(page, "trial")
        page.focus("#pause")
        page.keyboard.press("Tab")  # to Left, and on over the three of zoom to Right
        answer(page, lambda: page.keyboard.press("Space"))
        for _ in range(4):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "choose-right"
        answer(page, lambda: page.keyboard.press("Enter"))
        assert [row["result"] for row in rows_of(study, page)] == [1, 2, 1, 2, 1, 2]


def test_zoom_and_movement_are_the_same_in_all_three(browser, shared):
    with person(browser, **DESKTOP) as page:
        begin(page, shared[1])
        whole = assert_together(page)
        page.keyboard.press("+")
        assert page.inner_text("#zoom-fit") == "200 %"
        page.keyboard.press("+")
        assert assert_together(page) == pytest.approx((4, 160, 120), abs=1 / 8)  # half a pixel of the screen
        page.keyboard.press("Shift+ArrowRight")
        assert assert_together(page) == pytest.approx((4, 180, 120), abs=1 / 8)  # moved by 80
        box = page.locator(".stage[data-what=right]").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 40, middle[1] + 20, steps=4)
        page.mouse.up()
        assert assert_together(page) == pytest.approx((4, 170, 115), abs=1 / 8)
        page.mouse.move(middle[0] + 100, middle[1])
        before = shown_region(page, "right")
        page.mouse.wheel(0, -100)
        page.wait_for_function("() => document.getElementById('zoom-fit').textContent !== '400 %'")
        after = shown_region(page, "right")
        assert after[0] > 4

        def pointed_at(region):
            return region[1] + (box["width"] / 2 + 100) / region[0]

        assert pointed_at(after) == pytest.approx(
            pointed_at(before), abs=1 / 4
        )  # what is under the pointer stays there
        assert_together(page)
        page.click("#zoom-fit")
        assert assert_together(page) == whole
        page.dblclick(".stage[data-what=reference]")
        assert assert_together(page)[0] == 3
        page.wait_for_timeout(PAUSE_MS)
        answer(page, lambda: page.keyboard.press("1"))
        assert assert_together(page) == whole  # the next question begins with the whole image


def test_two_fingers_zoom_all_three(browser, shared):
    with person(browser, **PHONE) as page:
        begin(page, shared[1])
        scale = assert_together(page)[0]
        assert scale == 0.5  # two pixels of the screen for one of the page: pixel for pixel
        box = page.locator(".stage[data-what=left]").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = page.context.new_cdp_session(page)
        for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 40), ("touchEnd", None)):
            points = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        zoomed = assert_together(page)
        assert zoomed[0] == pytest.approx(2 * scale, rel=0.02)
        for kind, shift in (("touchStart", 0), ("touchMove", 30), ("touchEnd", None)):
            points = [] if shift is None else [{"x": x + shift, "y": y, "id": 0}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        moved = assert_together(page)
        assert moved[1] == pytest.approx(zoomed[1] - 30 / zoomed[0], abs=1 / zoomed[0])


def test_a_double_click_or_a_key_held_down_is_one_answer(browser, shared):
    study, address = shared
    with person(browser, **DESKTOP) as page:
        begin(page, address)
        answer(page, lambda: page.dblclick("#choose-left"))
        answer(page, lambda: [page.keyboard.down("ArrowRight") for _ in range(20)])
        page.wait_for_timeout(2 * PAUSE_MS)
        page.keyboard.up("ArrowRight")
        assert page.inner_text("#number") == "3"
        at_once = "new MutationObserver(() => document.getElementById('choose-right').click())"
        page.evaluate(f"{at_once}.observe(document.body, {{attributeFilter: ['data-shown']}})")
        for _ in range(QUESTIONS - 2):  # a second click, just when the next question has come, is not an answer to it
            answer(page, lambda: page.keyboard.press("1"))
        assert [row["result"] for row in rows_of(study, page)] == [1, 2, 1, 1, 1, 1]


def test_pause_and_return_by_the_personal_link_on_another_device(browser, shared):
    study, address = shared
    with person(browser, **DESKTOP) as page:
        begin(page, address)
        answer(page, lambda: page.keyboard.press("1"))
        answer(page, lambda: page.keyboard.press("2"))
        page.click("#pause")
        see(page, "paused")
        link = page.input_value("#link")
        assert re.fullmatch(re.escape(address) + "#[A-Za-z0-9_-]{43}", link)
        left_at = question(page)
        asked = []
        with person(browser, **PHONE) as phone:
            phone.on("request", lambda request: asked.append((request.url, str(request.headers))))
            phone.goto(link)
            see(phone, "trial")
            phone.wait_for_selector("body[data-shown]")
            assert question(phone) == left_at
            assert phone.inner_text("#number") == "3"
            assert phone.url == address  # nobody reads the link off the screen
            token = link.partition("#")[2]
            assert not any(token in url for url, _ in asked)
            assert not any(token in headers.replace("cookie", "") for url, headers in asked if "api/resume" in url)
            for _ in range(QUESTIONS - 2):
                answer(phone, lambda: phone.tap("#choose-right"))
            assert [row["result"] for row in rows_of(study, phone)] == [1, 2, 2, 2, 2, 2]
        page.click("#go-on")  # the first device still shows what has been answered elsewhere
        page.wait_for_timeout(PAUSE_MS)
        page.keyboard.press("1")
        see(page, "thanks")
        assert "first answer stays" in page.inner_text("#trouble")
        assert [row["result"] for row in rows_of(study, page)] == [1, 2, 2, 2, 2, 2]


def test_a_link_that_is_not_known_says_so(browser, shared):
    with person(browser, **DESKTOP) as page:
        page.goto(shared[1] + "#" + "A" * 43)
        see(page, "lost")
        page.click("#anew")
        see(page, "consent")


def test_the_next_question_is_loaded_while_this_one_is_looked_at(browser, shared):
    with person(browser, **DESKTOP) as page:
        begin(page, shared[1])
        page.wait_for_load_state("networkidle")
        fetched = []
        page.on("request", lambda request: fetched.append(request.url))
        first = question(page)
        answer(page, lambda: page.keyboard.press("1"))
        assert question(page) != first
        assert not any(f"/image/{question(page)}/" in url for url in fetched)


def test_a_server_that_is_killed_half_way_loses_and_doubles_nothing(browser, tmp_path):
    """SIGKILL before an answer is sent, twice: the page keeps it, says so, and sends it when there is a server again.

    The first time the page stays open; the second time it is opened anew.
    """
    study = made_up_study(tmp_path, trials=4, screening=2)

    def answer_in_vain(page, process, key, number):
        page.wait_for_load_state("networkidle")
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.wait_for_timeout(PAUSE_MS)
        page.keyboard.press(key)
        page.wait_for_selector("#trouble-offline:not([hidden])")
        assert "Your answer is kept" in page.inner_text("#trouble")
        page.keyboard.press("1")  # nothing can be answered meanwhile
        page.wait_for_timeout(PAUSE_MS)
        assert page.inner_text("#number") == number  # the page has not moved on

    with person(browser, **DESKTOP) as page:
        with running(study) as (address, process):
            begin(page, address)
            answer(page, lambda: page.keyboard.press("1"))
            answer(page, lambda: page.keyboard.press("2"))
            answer_in_vain(page, process, "2", "3")
            assert len(export_rows(study)) == 2
        port = int(address.rstrip("/").rpartition(":")[2])
        with running(study, port=port) as (_address, process):
            page.wait_for_function("() => document.getElementById('number').textContent === '4'")
            page.wait_for_selector("#trouble", state="hidden")
            answer_in_vain(page, process, "2", "4")
        with running(study, port=port):
            page.goto(address)
            page.wait_for_function("() => document.getElementById('number').textContent === '5'")
            answer(page, lambda: page.keyboard.press("1"))
            answer(page, lambda: page.keyboard.press("2"))
            assert [row["result"] for row in rows_of(study, page)] == [1, 2, 2, 2, 1, 2]


def test_an_answer_that_was_stored_but_not_acknowledged_is_not_doubled(browser, shared):
    """The connection breaks after the server has stored the vote: the page sends it again."""
    study, address = shared
    with person(browser, **DESKTOP) as page:
        begin(page, address)
        lost = []

        def lose(route):
            if len(lost) < 2:
                lost.append(route.fetch().json()["outcome"])
                route.abort("connectionreset")
            else:
                route.continue_()

        page.route("**/api/vote", lose)
        answer(page, lambda: page.keyboard.press("2"))
        assert lost == ["recorded", "same"]
        for _ in range(QUESTIONS - 1):
            answer(page, lambda: page.keyboard.press("1"))
        assert [row["result"] for row in rows_of(study, page)] == [2, 1, 1, 1, 1, 1]
