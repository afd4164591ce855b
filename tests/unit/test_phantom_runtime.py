"""The CUDA runtime that owns no device, asked through its public functions."""

import pytest
from phantom_child import ask, start

GIB = 1 << 30
PAGE = 2 << 20


def test_memory_is_counted_in_pages_and_small_requests_share_one():
    """Two requests of 2 MiB + 1 take 8 MiB, a hundred of 1 KiB take 2 MiB; all comes back."""
    used = ask(
        """
        used = []
        large = [allocate((2 << 20) + 1)[1] for _ in range(2)]
        used.append(control.used_bytes())
        small = [allocate(1024)[1] for _ in range(100)]
        used.append(control.used_bytes())
        assert len({p.value for p in small}) == 100
        for pointer in large + small:
            assert call("cudaFree", pointer) == 0
        answer([*used, control.used_bytes(), control.peak_bytes()])
        """
    )

    assert [4 * PAGE, 5 * PAGE, 0, 5 * PAGE] == used


def test_capacity_less_what_others_hold_is_what_fits():
    """At 3 GiB with 1 GiB taken, 2 GiB fit and not a page more; the error is CUDA's."""
    found = ask(
        """
        first = allocate(1 << 30)[0], allocate((1 << 30) - (2 << 20))[0]
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        last = allocate(2 << 20)[0]
        refused = allocate(2 << 20)[0]
        name = cuda.cudaGetErrorName
        name.restype = ctypes.c_char_p
        seen = [call("cudaPeekAtLastError"), call("cudaGetLastError"), call("cudaGetLastError")]
        answer([*first, free.value, total.value, last, name(refused).decode(), seen])
        """,
        capacity_bytes=3 * GIB,
        other_bytes=GIB,
    )

    assert [0, 0, PAGE, 3 * GIB, 0, "cudaErrorMemoryAllocation", [2, 2, 0]] == found


def test_blocks_never_overlap_and_bytes_add_up():
    """Two thousand random requests and releases against a plain model."""
    ask(
        """
        import random
        random.seed(1)
        live, page = {}, 2 << 20
        for step in range(2000):
            if live and random.random() < 0.4:
                pointer = random.choice(list(live))
                assert call("cudaFree", ctypes.c_void_p(pointer)) == 0
                del live[pointer]
            else:
                odd = random.randrange(1 << 20, 1 << 26)
                size = random.choice([1 << 20, 3 << 20, 20 << 20, odd])
                error, pointer = allocate(size)
                assert error == 0
                live[pointer.value] = -(-size // page) * page
            assert control.used_bytes() == sum(live.values())
        spans = sorted(live.items())
        assert all(at + size <= later for (at, size), (later, _) in zip(spans, spans[1:]))
        assert call("cudaFree", ctypes.c_void_p(spans[0][0] + 512)) == 1
        answer(True)
        """,
        capacity_bytes=1 << 40,
    )


def test_each_device_has_its_own_memory_and_each_thread_its_device():
    """Two cards; a thread starts on card 0 whatever others chose."""
    found = ask(
        """
        import threading
        def current():
            device = ctypes.c_int(-1)
            call("cudaGetDevice", ctypes.byref(device))
            return device.value
        assert call("cudaSetDevice", 1) == 0
        allocate(4 << 20)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        peer = ctypes.c_int(-1)
        call("cudaDeviceCanAccessPeer", ctypes.byref(peer), 0, 1)
        used = control.used_bytes(0), control.used_bytes(1)
        answer([current(), *seen, *used, call("cudaSetDevice", 2), peer.value])
        """,
        num_devices=2,
    )

    assert [1, 0, 0, 2 * PAGE, 101, 0] == found


def test_queued_values_are_delivered_by_size_in_order():
    """Sizes do not mix; what nobody queued is zero and counted."""
    found = ask(
        """
        _, pointer = allocate(1 << 20)
        def read(size):
            data = ctypes.create_string_buffer(b"?" * size, size)
            call("cudaMemcpy", data, pointer, ctypes.c_size_t(size), 2)
            return data.raw.hex()
        for value in (b"ab", b"xyz", b"cd"):
            control.queue_read(value)
        seen = [read(3), read(2), read(2), read(2), control.num_unqueued_reads()]
        control.queue_read(bytes(1 << 20))
        control.clear_reads()
        seen.append(control.num_queued_reads())
        answer(seen)
        """
    )

    assert [b"xyz".hex(), b"ab".hex(), b"cd".hex(), "0000", 1, 0] == found


def test_a_reader_decides_what_is_not_queued():
    """It gets address and size; None means zeros."""
    found = ask(
        """
        _, pointer = allocate(64)
        asked = []
        def reader(address, size):
            asked.append([address == pointer.value, size])
            return b"\\x07" * size if size == 4 else None
        def read(size):
            data = ctypes.create_string_buffer(b"?" * size, size)
            call("cudaMemcpy", data, pointer, ctypes.c_size_t(size), 2)
            return data.raw.hex()
        control.set_reader(reader)
        seen = [read(4), read(8)]
        control.set_reader(None)
        answer([*seen, read(4), asked])
        """
    )

    assert ["07070707", "00" * 8, "00" * 4, [[True, 4], [True, 8]]] == found


def test_what_the_host_wrote_is_read_back_until_a_kernel_runs():
    """Copies and memset keep the truth, a launch makes it unknown."""
    found = ask(
        """
        _, first = allocate(64)
        _, second = allocate(64)
        def read(pointer, size=4):
            data = ctypes.create_string_buffer(size)
            call("cudaMemcpy", data, pointer, ctypes.c_size_t(size), 2)
            return data.raw.hex()
        call("cudaMemcpy", first, b"host", ctypes.c_size_t(4), 1)
        call("cudaMemcpy", second, first, ctypes.c_size_t(4), 3)
        seen = [read(first), read(second), read(second, 2)]
        call("cudaMemset", first, 9, ctypes.c_size_t(4))
        seen.append(read(first))
        class Dim3(ctypes.Structure):
            _fields_ = [(name, ctypes.c_uint) for name in "xyz"]
        one = Dim3(1, 1, 1)
        assert call("cudaLaunchKernel", None, one, one, None, ctypes.c_size_t(0), None) == 0
        answer([*seen, read(first), read(second)])
        """
    )

    assert [b"host".hex(), b"host".hex(), b"ho".hex(), "09" * 4, "00" * 4, "00" * 4] == found


def test_a_launch_outside_the_cards_limits_fails():
    """1025 threads a block fit no card."""
    found = ask(
        """
        class Dim3(ctypes.Structure):
            _fields_ = [(name, ctypes.c_uint) for name in "xyz"]
        one, many = Dim3(1, 1, 1), Dim3(1025, 1, 1)
        answer(call("cudaLaunchKernel", None, one, many, None, ctypes.c_size_t(0), None))
        """
    )

    assert 9 == found  # cudaErrorInvalidConfiguration


def test_a_missing_function_is_an_error_that_names_it():
    """Never success: the code is "not supported", stderr and control say which."""
    done = start(
        """
        codes = [call("cudaImportExternalMemory"), call("cublasXtCreate"), call("ncclCommRevoke")]
        call("cudaImportExternalMemory")
        answer([codes, sorted(control.missing_calls())])
        """
    )

    assert '[[801, 15, 5], ["cublasXtCreate", "cudaImportExternalMemory", "ncclCommRevoke"]]' == (
        done.stdout.strip()
    )
    assert 3 == done.stderr.count("was called and is not implemented; it returned an error")


def test_pools_hold_chunks_until_they_are_trimmed_or_needed():
    """32 MiB for a first small piece, given back on request and before a request fails."""
    found = ask(
        """
        size = ctypes.c_size_t
        pointer, pool, keep = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64(2**64 - 1)
        call("cudaDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        call("cudaMemPoolSetAttribute", pool, 4, ctypes.byref(keep))
        used = []
        for _ in range(2):
            call("cudaMallocAsync", ctypes.byref(pointer), size(1000), None)
            used.append(control.used_bytes())
        call("cudaFreeAsync", pointer, None)
        used.append(control.used_bytes())
        call("cudaMallocAsync", ctypes.byref(pointer), size(40 << 20), None)
        call("cudaFreeAsync", pointer, None)
        used.append(control.used_bytes())
        call("cudaMemPoolTrimTo", pool, size(0))
        used.append(control.used_bytes())
        call("cudaMallocAsync", ctypes.byref(pointer), size(40 << 20), None)
        call("cudaFreeAsync", pointer, None)
        used.append(allocate(990 << 20)[0])
        answer(used)
        """,
        capacity_bytes=GIB,
        other_bytes=0,
    )

    assert [32 << 20, 32 << 20, 32 << 20, 72 << 20, 32 << 20, 0] == found


@pytest.mark.parametrize(("card", "blocks"), [("a100-80gb", 8), ("rtx-3090", 6), ("t4", 4)])
def test_occupancy_follows_the_cards_limits(card, blocks):
    """Blocks of 256 threads with 32 registers: threads bound an A100 and a T4, and a 3090."""
    found = ask(
        """
        count = ctypes.c_int()
        ask_for = cuda.cudaOccupancyMaxActiveBlocksPerMultiprocessor
        ask_for(ctypes.byref(count), None, 256, ctypes.c_size_t(0))
        answer(count.value)
        """,
        card=card,
    )

    assert blocks == found


def test_a_crash_inside_ends_the_child_alone():
    """Device memory cannot be touched by the host: the child dies of it, as on a card."""
    done = start("ctypes.memset(allocate(1 << 20)[1].value, 1, 1)")

    assert -11 == done.returncode
