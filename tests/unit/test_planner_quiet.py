"""Standard output carries answers only, whatever a library's C code writes."""

import ctypes

from memplan.planner.quiet import quiet_stdout


def test_what_c_code_writes_is_dropped_and_what_follows_is_not(capfd):
    """Lines before and after come out, buffered or not; the one within does not."""
    libc = ctypes.CDLL(None)

    libc.printf(b"before\n")
    with quiet_stdout():
        libc.printf(b"within\n")
    libc.printf(b"after\n")
    libc.fflush(None)

    assert "before\nafter\n" == capfd.readouterr().out
