"""Ctrl-C waits for the end of a block, once."""

import signal
import threading

import pytest

from sparsecraft.model.interrupts import hold_interrupts

pytestmark = pytest.mark.usefixtures("usual_interrupts")


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_one_is_raised_when_the_block_ends():
    done = []
    with pytest.raises(KeyboardInterrupt), hold_interrupts() as held:
        press()
        done.append(held.pressed)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_one_is_raised_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), hold_interrupts():
        press()
        done.append("whole")
        press()
        done.append("never")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_error_of_the_block_comes_through():
    with pytest.raises(ZeroDivisionError), hold_interrupts():
        press()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_stays():
    told = []
    handler = lambda number, frame: told.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, handler)
    with hold_interrupts() as held:
        press()
    assert (told, held.pressed) == ([signal.SIGINT], False)
    assert signal.getsignal(signal.SIGINT) is handler


def test_nothing_is_held_outside_the_main_thread():
    found = []

    def work():
        with hold_interrupts() as held:
            found.extend([held.pressed, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, signal.default_int_handler]
