import signal

import pytest


@pytest.fixture
def usual_interrupts():
    """Ctrl-C raises KeyboardInterrupt, whatever the test runner has made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
