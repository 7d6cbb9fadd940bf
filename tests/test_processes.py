"""How the tests are spread over processes, where there are several."""

import os

import pytest

SEEN = []


@pytest.mark.parametrize("number", range(6))
def test_tests_of_one_file_run_in_one_process_and_in_order(number):
    """Fixtures of a module are made once, and what listens at fixed ports stands alone."""
    SEEN.append((os.getpid(), number))
    assert [(os.getpid(), earlier) for earlier in range(number + 1)] == SEEN
