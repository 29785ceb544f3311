import pytest

from tests.cli.files import prepare


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the files that the examples speak of."""
    return prepare(tmp_path_factory.mktemp("examples"))
