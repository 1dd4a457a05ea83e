"""An interrupt waits for the end of a block that must not be left in the middle."""

import signal
import threading

import pytest

from imgfast.engine import interrupts


@pytest.fixture(autouse=True)
def python_handles_interrupts():
    """A process in the background may ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_block_ends_first():
    done = False
    with pytest.raises(KeyboardInterrupt), interrupts.held_back():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_no_interrupt_and_an_error():
    with pytest.raises(ZeroDivisionError), interrupts.held_back():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone():
    found = []

    def run():
        with interrupts.held_back():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
