"""The shipped subset, decoded once for all tests of the data layer."""

import pytest

from imgfast.data import ImageSet, load_data


@pytest.fixture(scope="session")
def subset() -> ImageSet:
    return load_data("fashion-mnist")
