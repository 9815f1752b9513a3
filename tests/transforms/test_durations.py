import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("30m", 1_800_000_000),
        ("30 min", 1_800_000_000),
        ("1d", 86_400_000_000),
        ("500ms", 500_000),
        ("1h30m", 5_400_000_000),
        ("1h 30m", 5_400_000_000),
        ("1.5h", 5_400_000_000),
        ("2w", 1_209_600_000_000),
        ("7us", 7),
        ("0s", 0),
        (90, 90_000_000),
        (0.1, 100_000),
        ("0.1", 100_000),
        (" 90 ", 90_000_000),
    ],
)
def test_parse(text, expected_us):
    assert parse_duration(text) == expected_us


@pytest.mark.parametrize(
    "text", ["", "m", "30x", "-5m", -1, True, None, "1h30", "h1", "1 h m", "nan", float("inf"), "1,5h", [1]]
)
def test_parse_says_what_it_wants(text):
    with pytest.raises(ValueError, match="expected a duration such as"):
        parse_duration(text)


def test_parse_refuses_parts_of_a_microsecond_and_what_leaves_int64():
    with pytest.raises(ValueError, match="whole number of microseconds"):
        parse_duration("0.5us")
    with pytest.raises(ValueError, match="at most"):
        parse_duration("99999999w")


@given(st.integers(0, 10**16))
def test_format_is_read_back(duration_us):
    assert parse_duration(format_duration(duration_us)) == duration_us


def test_format():
    assert [format_duration(us) for us in (0, 1, -500_000, 5_400_000_000, 8 * 86_400_000_000)] == [
        "0s",
        "1us",
        "-500ms",
        "1h30m",
        "8d",
    ]
