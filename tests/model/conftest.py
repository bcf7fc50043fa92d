import shutil

import pytest

from tests.runtime.builders import folders

__all__ = ["folder", "folders"]


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the tiny policy, to be damaged."""
    return shutil.copytree(folders.policy, tmp_path / "policy")
