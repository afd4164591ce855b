"""The HTML report in a browser: it opens, tells what is pointed at, and runs no foreign script."""

import dataclasses
import re

import pytest
from block_toys import HOSTILE, many_lives, toy_lives

from benchmarks.browser import Browser, found_browser
from memplan.html import write_html

pytestmark = pytest.mark.skipif(
    found_browser() is None,
    reason="no Chromium is installed: apt-get install chromium, and these tests run",
)
TOLD = "document.querySelector('.told').innerText"
PLACE = """(() => {
  const box = document.querySelector('canvas').getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
})()"""


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of this file."""
    with Browser(found_browser()) as opened:
        yield opened


def opened_page(browser, folder, *lives):
    """Open a report of lives."""
    path = write_html(folder / "page.html", lives=lives, command="memplan replay toy.tape")
    browser.open(path)
    return path


def test_page_draws_and_loads_nothing(browser, tmp_path):
    """The only thing asked for is the page itself, and no script complains."""
    path = opened_page(browser, tmp_path, toy_lives())

    assert [path.as_uri()] == browser.requests()
    assert [] == browser.complaints()
    assert "1" == browser.value("document.documentElement.dataset.pictures")


def test_pointing_tells_tensor_module_operator_and_line(browser, tmp_path):
    """The block under the mouse is described."""
    opened_page(browser, tmp_path, toy_lives())
    x, y, width, height = browser.value(PLACE)
    # Event 4 of 6 stacks parameter 4, activation 4, workspace 2, cached 2, context 1 MiB.
    plot_top, plot_height = 38, height - 38 - 26
    top_bytes = 1.05 * 16  # the capacity is the highest that is drawn
    middle = plot_top + plot_height * (1 - 6 / top_bytes)
    browser.mouse("mouseMoved", x + 62 + (width - 72) * 3.5 / 6, y + middle)

    told = browser.value(TOLD)
    assert "event 4 of 6: first step, forward; allocated 10.0 MiB, in all 13.0 MiB" in told
    assert "4.00 MiB activation: 8 x 64, float16" in told
    assert "module layer1.conv Conv2d; operator convolution; line net.py:12 forward" in told
    assert "from event 3 to 5" in told


def test_keys_move_the_cursor_and_climb_the_stack(browser, tmp_path):
    """Whoever uses no mouse reads the same, and a live region says it."""
    opened_page(browser, tmp_path, toy_lives())
    browser.value("document.querySelector('canvas').focus()")
    assert "4.00 MiB parameter: 1024 x 1024, float32" in browser.value(TOLD)

    browser.key("ArrowUp")
    assert "4.00 MiB activation" in browser.value(TOLD)
    browser.key("ArrowUp")
    assert "2.00 MiB workspace" in browser.value(TOLD)
    browser.key("ArrowDown")
    assert "4.00 MiB activation" in browser.value(TOLD)
    browser.key("End")
    assert "event 6 of 6" in browser.value(TOLD)
    assert "status" == browser.value("document.querySelector('.told').getAttribute('role')")


def test_a_stretch_is_zoomed_into_and_left_again(browser, tmp_path):
    """Dragging shows a stretch; the key 0 and the button show the whole."""
    opened_page(browser, tmp_path, many_lives(5000))
    x, y, width, height = browser.value(PLACE)
    before = browser.value("document.querySelector('canvas').toDataURL().length")
    for kind, share in (("mousePressed", 0.4), ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        place = x + 62 + (width - 72) * share
        browser.mouse(kind, place, y + height / 2, button="left", buttons=1, clickCount=1)
    closer = browser.value("document.querySelector('canvas').toDataURL().length")
    browser.mouse("mouseMoved", x + 62 + (width - 72) * 0.5, y + height / 2)
    number = int(re.match(r"event ([\d,]+) of", browser.value(TOLD))[1].replace(",", ""))

    assert before != closer
    assert 4450 <= number <= 4550
    browser.value("document.querySelector('[data-act=whole]').click()")
    browser.mouse("mouseMoved", x + 62 + (width - 72) * 0.9, y + height / 2)
    number = int(re.match(r"event ([\d,]+) of", browser.value(TOLD))[1].replace(",", ""))
    assert 8900 <= number <= 9100


def test_no_name_becomes_more_than_text(browser, tmp_path):
    """A module, line, operator, title or phase that holds a script is shown and not run."""
    hostile = [
        dataclasses.replace(one, tensor=HOSTILE, module=HOSTILE, operator=HOSTILE, line=HOSTILE)
        for one in toy_lives().labels
    ]
    lives = toy_lives(
        title=HOSTILE,
        labels=tuple(hostile),
        phases=((HOSTILE, HOSTILE, 0),),
        notes=(HOSTILE,),
    )
    opened_page(browser, tmp_path, lives)

    assert [] == browser.complaints()
    assert 0 == browser.value("document.images.length")
    assert browser.value("document.title").startswith("Training memory: </script><script>")
    assert "<img src=x onerror=alert(1)>" in browser.value(TOLD)


def test_page_fits_a_phone(browser, tmp_path):
    """At 360 px nothing but tables within their own boxes is wider than the screen."""
    browser.resize(360, 740, is_phone=True)
    try:
        opened_page(browser, tmp_path, toy_lives())

        assert 360 >= browser.value("document.documentElement.scrollWidth")
        assert 300 <= browser.value(PLACE)[2] <= 360
    finally:
        browser.resize(1200, 900)
