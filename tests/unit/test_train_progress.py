"""Progress: a live bar on a terminal, plain lines elsewhere."""

import io

import pytest

from memplan.training.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def _train(stream):
    progress = Progress(2, stream=stream)
    progress.start_epoch(10)
    progress.update(0, 5, lambda: ("error 0.500", "1 GiB"))
    progress.end_epoch(0, "error 0.400", {"mAP50": 0.25, "fitness": 0.1}, 12.3, "1 GiB")
    return stream.getvalue()


def test_elsewhere_there_is_one_line_an_epoch():
    """No control characters reach a file, and nobody reads losses in between."""
    text = _train(io.StringIO())

    assert text.startswith("epoch 1/2: error 0.400, mAP50 0.250, 12.3 images/s, 1 GiB, ")
    assert text.endswith(" left\n")
    assert "\r" not in text
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar_that_is_replaced():
    """Half of the images fill half of the bar, in colour; the epoch's line stays."""
    text = _train(_Terminal())

    assert "\x1b[32m#####-----\x1b[0m" in text
    assert " 50%, " in text
    assert " img/s, 1 GiB, error 0.500" in text
    assert text.splitlines()[-1].startswith("\x1b[Kepoch 1/2: error 0.400")


def test_no_color_is_respected(monkeypatch):
    """With NO_COLOR the bar is plain."""
    monkeypatch.setenv("NO_COLOR", "1")

    assert "[#####-----]" in _train(_Terminal())


def test_a_bar_never_wraps(monkeypatch):
    """On a narrow terminal the line is cut, for a wrapped one could not be replaced."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", "1")

    bar = _train(_Terminal()).split("\x1b[K")[1].rstrip("\r")
    assert 50 > len(bar)


def test_the_bar_is_redrawn_at_most_twice_a_second():
    """Losses are read only when drawn, because reading waits for the device."""
    reads = []
    progress = Progress(1, stream=_Terminal())
    progress.start_epoch(10)
    for images in range(10):
        progress.update(0, images, lambda: reads.append(1) or ("", ""))

    assert 1 == len(reads)


@pytest.mark.parametrize(("columns", "has_bar"), [(80, False), (120, True)])
def test_every_fact_has_room_on_a_usual_terminal(monkeypatch, columns, has_bar):
    """Of 80 columns epoch, share, times, speed and memory take 68; losses take what is left."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    progress = Progress(100, stream=stream)
    progress.start_epoch(1000, 200)
    progress._epoch_started -= 190
    progress._started -= 190
    progress.update(11, 500, lambda: ("box 1.23, cls 0.85, dfl 1.11", "5.10/5.32/22.50 GiB"))
    line = stream.getvalue().split("\x1b[K")[1]

    assert has_bar == ("[#####-----]" in line)
    assert " 50%, 5:17 left, run " in line
    assert ", 1.58 img/s, 5.10/5.32/22.50 GiB" in line
    assert has_bar == ("dfl 1.11" in line)
    assert columns > len(line)


def test_elsewhere_a_long_epoch_has_a_line_a_minute():
    """A log shows that a long epoch is alive, with losses, times and memory."""
    stream = io.StringIO()
    progress = Progress(3, stream=stream)
    progress.start_epoch(10)
    for seconds in (0, 61, 0):
        progress._drawn -= seconds
        progress.update(0, 5, lambda: ("error 0.50", "1 GiB"))

    [line] = stream.getvalue().splitlines()
    assert line.startswith("epoch 1/3: 50%, ")
    assert line.endswith(", 1 GiB, error 0.50")
