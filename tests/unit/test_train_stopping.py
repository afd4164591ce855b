"""A request to stop: the second Ctrl-C ends at once, wherever it comes."""

import signal
import sys
import time

import pytest

from memplan.training.stopping import StopRequest


class _Interrupted:
    """Its end is where Ctrl-C comes."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def _interrupted_in_a_callback():
    _Interrupted()
    time.sleep(10)


def test_a_second_ctrl_c_within_a_callback_ends_the_run_and_prints_nothing(capfd):
    """A destructor cannot pass it on, so that it comes once more."""
    hook = sys.unraisablehook
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert "SIGINT" == stop.asked
        with pytest.raises(KeyboardInterrupt):
            _interrupted_in_a_callback()

    assert hook is sys.unraisablehook
    assert "" == capfd.readouterr().err
