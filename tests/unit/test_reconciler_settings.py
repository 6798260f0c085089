import pytest

from holdfast.settings import KNOWN_VARIABLES
from reconciler import settings
from reconciler.settings import ReconcilerSettings, SettingRefused


def test_what_is_missing_or_empty_takes_its_default() -> None:
    assert ReconcilerSettings.from_environment({}) == ReconcilerSettings()
    told = {settings.SEGMENT_AGE_SECONDS: "", "HOLDFAST_PORT": "80"}
    assert ReconcilerSettings.from_environment(told) == ReconcilerSettings()


def test_each_variable_is_read() -> None:
    told = {
        settings.ARCHIVE_URL: "s3://bucket/shop",
        settings.RESUME_WINDOW_SECONDS: "0",
        settings.SEGMENT_AGE_SECONDS: "5",
        settings.SNAPSHOT_INTERVAL_SECONDS: "600",
        settings.AUDIT_ROWS_PER_SECOND: "0",
    }
    assert ReconcilerSettings.from_environment(told) == ReconcilerSettings(
        archive_url="s3://bucket/shop",
        resume_window_seconds=0,
        segment_age_seconds=5,
        snapshot_interval_seconds=600,
        audit_rows_per_second=0,
    )
    assert set(told) <= KNOWN_VARIABLES, "`serve` would refuse it as unknown"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (settings.RESUME_WINDOW_SECONDS, "an hour"),
        (settings.RESUME_WINDOW_SECONDS, "-1"),
        (settings.SEGMENT_AGE_SECONDS, "1.5"),
        (settings.SEGMENT_AGE_SECONDS, "99999999"),
        (settings.SNAPSHOT_INTERVAL_SECONDS, "0"),
        (settings.AUDIT_ROWS_PER_SECOND, "\u0665"),
    ],
)
def test_a_variable_that_is_not_of_its_form_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingRefused, match=name):
        ReconcilerSettings.from_environment({name: text})
