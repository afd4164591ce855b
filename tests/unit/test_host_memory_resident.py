"""What a process holds is its own, whoever started it."""

import subprocess
import sys

from memplan.host_memory import resident_bytes, resident_peak_bytes

_LARGE = 1 << 28
_CHILD = "from memplan.host_memory import resident_peak_bytes; print(resident_peak_bytes())"


def test_the_peak_of_a_program_does_not_begin_with_its_parent_s():
    """A program started by a large process says what it took itself."""
    ballast = b"\1" * _LARGE

    command = [sys.executable, "-c", _CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert _LARGE < resident_bytes() <= resident_peak_bytes()
    assert 0 < int(done.stdout) < _LARGE
    assert _LARGE == len(ballast)
