"""What all tests need."""

import signal

# Whoever starts the tests in the background may have it ignored, which the tests' own processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
