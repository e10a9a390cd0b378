"""What the tests of all adapters share."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
