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
    """Half of the images fill half of the bar, in colour; the epoch's line takes its place."""
    text = _train(_Terminal())

    assert "\x1b[32m#####-----\x1b[0m" in text
    assert " 50%, " in text
    assert " img/s\n  error 0.500, 1 GiB" in text
    assert text.split("\x1b[J")[-1].startswith("epoch 1/2: error 0.400")


def test_no_color_is_respected(monkeypatch):
    """With NO_COLOR the bar is plain."""
    monkeypatch.setenv("NO_COLOR", "1")

    assert "[#####-----]" in _train(_Terminal())


def test_a_bar_never_wraps(monkeypatch):
    """On a narrow terminal lines are cut, for wrapped ones could not be replaced."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")

    drawn = _train(_Terminal()).split("\x1b[K")[1].partition("\r")[0].splitlines()
    assert [True, True] == [len(line) < 40 for line in drawn]


def test_what_is_noted_takes_the_bars_place(monkeypatch):
    """A warning clears both lines; the next bar begins below it and clears nothing above."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    progress = Progress(1, stream=stream)
    progress.start_epoch(10)
    for _ in range(2):
        progress._drawn = 0
        progress.update(0, 5, lambda: ("error 0.5", "1 GiB"))
    progress.note("Warning: look.")
    progress._drawn = 0
    progress.update(0, 5, lambda: ("error 0.5", "1 GiB"))

    text = stream.getvalue()
    assert 2 == text.count("\x1b[1A")
    assert "\x1b[JWarning: look.\n\r\x1b[K1/1 [" in text


def test_the_bar_is_redrawn_at_most_twice_a_second():
    """Losses are read only when drawn, because reading waits for the device."""
    reads = []
    progress = Progress(1, stream=_Terminal())
    progress.start_epoch(10)
    for images in range(10):
        progress.update(0, images, lambda: reads.append(1) or ("", ""))

    assert 1 == len(reads)


@pytest.mark.parametrize("columns", [80, 120])
def test_every_fact_has_room_on_a_usual_terminal(monkeypatch, columns):
    """At 80 columns: a bar, epoch, times left, speed; three losses, live, predicted, budget."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    progress = Progress(100, stream=stream)
    progress.start_epoch(1000, 200)
    progress._epoch_started -= 190
    progress._started -= 190
    losses, memory = "box 1.23, cls 0.85, dfl 1.11", "5.10 of 5.32 GiB predicted, 22.50 budget"
    progress.update(11, 500, lambda: (losses, memory))
    first, second = stream.getvalue().split("\x1b[K")[1].splitlines()

    assert first.startswith("12/100 [#####-----]  50%, 5:17 left, run ")
    assert first.endswith(", 1.58 img/s")
    assert f"  {losses}, {memory}" == second
    assert columns > max(len(first), len(second))


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
    assert line.endswith(" img/s, error 0.50, 1 GiB")


def test_an_epochs_line_fits_the_terminal(monkeypatch):
    """On a terminal it is broken between two facts, none of which is lost; elsewhere it is one."""
    monkeypatch.setenv("COLUMNS", "60")
    metrics = dict.fromkeys(("precision", "recall", "mAP50", "mAP50-95", "val/box_loss"), 0.5)
    texts = []
    for stream in (_Terminal(), io.StringIO()):
        progress = Progress(2, stream=stream)
        progress.start_epoch(10)
        progress.end_epoch(0, "box 1.23, cls 0.85, dfl 1.11", metrics, 12.3, "5.10 GiB reserved")
        texts.append(stream.getvalue().removeprefix("\r\x1b[K"))
    folded, whole = texts

    assert 60 > max(map(len, folded.splitlines()))
    assert whole.split() == folded.split()
    assert 1 == whole.count("\n")
