"""Options from STORAGES, settings, classes and the environment, and their errors."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from collectfast_storage import CollectfastS3Storage
from collectfast_storage.options import Options


def test_defaults() -> None:
    """A storage without options and settings has the documented defaults."""
    options = Options.of(CollectfastS3Storage(bucket_name="b"))
    assert options == Options(
        enabled=True,
        cache="default",
        cache_timeout=None,
        preload=True,
        threads=64,
        ignore_etag=False,
        retry_timeout=60,
        only_hashed=False,
        keep_originals=(),
        hashed_parameters=None,
        keep_releases=1,
    )


def test_options_override_settings() -> None:
    """`OPTIONS` override settings, because a setting applies to all storages."""
    with override_settings(COLLECTFAST_THREADS=4, COLLECTFAST_PRELOAD=False):
        options = Options.of(CollectfastS3Storage(collectfast_threads=8))
    assert (options.threads, options.preload) == (8, False)


def test_settings_are_read_when_a_storage_is_made() -> None:
    """Settings are read for each new storage, and not once at import."""
    for threads in (4, 5):
        with override_settings(COLLECTFAST_THREADS=threads):
            assert Options.of(CollectfastS3Storage()).threads == threads


def test_class_attribute_is_an_option() -> None:
    """A class attribute sets an option, as it does for django-storages' options."""

    class Mine(CollectfastS3Storage):
        collectfast_threads = 3

    assert Options.of(Mine()).threads == 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("threads", -1, "an integer from 0 to 1000"),
        ("threads", 1001, "an integer from 0 to 1000"),
        ("threads", "8", "an integer from 0 to 1000"),
        ("threads", True, "an integer from 0 to 1000"),
        ("cache_timeout", -1, "None or an integer of at least 0 (seconds)"),
        ("cache_timeout", 1.5, "None or an integer of at least 0 (seconds)"),
        ("enabled", "no", "True or False"),
        ("preload", None, "True or False"),
        ("ignore_etag", 1, "True or False"),
        ("only_hashed", 1, "True or False"),
        ("keep_originals", "robots.txt", "a list of patterns of file names"),
        ("keep_originals", [1], "a list of patterns of file names"),
        ("hashed_parameters", "immutable", "a dict of the form of object_parameters"),
        ("keep_releases", 0, "an integer from 1 to 1000"),
        ("keep_releases", 1001, "an integer from 1 to 1000"),
        ("keep_releases", True, "an integer from 1 to 1000"),
        ("cache", "no-such", "an alias in CACHES: 'default'"),
        ("cache", None, "an alias in CACHES: 'default'"),
    ],
)
def test_error_of_an_invalid_option(option: str, value: Any, message: str) -> None:
    """The error names the option, its setting, its value and the valid values."""
    with pytest.raises(ImproperlyConfigured) as caught:
        CollectfastS3Storage(**{f"collectfast_{option}": value})
    assert str(caught.value) == (
        f"The option collectfast_{option} (setting COLLECTFAST_{option.upper()}) "
        f"is {value!r}. Set it to {message}."
    )


def test_unknown_option_is_refused() -> None:
    """django-storages raises an error for an unknown option."""
    with pytest.raises(ImproperlyConfigured, match="collectfast_thread"):
        CollectfastS3Storage(collectfast_thread=8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", True),
        ("true", True),
        ("ON", True),
        ("0", False),
        ("", False),
        ("no", False),
    ],
)
def test_environment_variable(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    """COLLECTFAST_IGNORE_ETAG in the environment sets the option."""
    monkeypatch.setenv("COLLECTFAST_IGNORE_ETAG", value)
    assert Options.of(CollectfastS3Storage()).ignore_etag is expected


def test_environment_variable_that_is_neither_yes_nor_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An environment variable with an invalid value raises an error that names it."""
    monkeypatch.setenv("COLLECTFAST_IGNORE_ETAG", "maybe")
    with pytest.raises(
        ImproperlyConfigured, match="COLLECTFAST_IGNORE_ETAG is 'maybe'"
    ):
        CollectfastS3Storage()
