"""A user cache that is not the user's, and a tiny data set."""

import pytest


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "deeplearn"


@pytest.fixture
def prepared(prepare):
    return prepare(train=40, test=10)
