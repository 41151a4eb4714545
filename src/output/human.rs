//! Numbers, bytes, durations and moments as people read them. Pure: the present moment is an argument.

use chrono::{DateTime, Local, TimeZone, Utc};

/// `3285210` as `3,285,210`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1` as `1 row`, `2000` as `2,000 rows`.
pub(crate) fn counted(number: u64, one: &str) -> String {
    format!("{} {one}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Bytes in binary units with three significant digits: `512 B`, `1.50 KiB`, `24.3 MiB`, `107 GiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be printed as "1000", which is four digits: the next unit says it better.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Milliseconds as `850 ms`, `4.2 s`, `1m 05s`, `2h 03m`, `3d 04h`.
pub(crate) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Whole seconds for an estimate: `8s`, `2m 10s`, `1h 02m`.
pub(crate) fn estimate(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        _ => duration(seconds.saturating_mul(1000)),
    }
}

/// How long ago `at` is, both in milliseconds since the epoch.
pub(crate) fn ago(at: u64, now: u64) -> String {
    let ms = now.saturating_sub(at);
    match ms / 1000 {
        0 => "just now".to_owned(),
        1..60 => format!("{}s ago", ms / 1000),
        _ => format!("{} ago", duration(ms)),
    }
}

/// A moment in the reader's time zone, to the second: `2013-01-31 17:05:09`.
pub(crate) fn moment(ms: u64) -> String {
    local(ms).map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// The time of day of a moment, to the millisecond.
pub(crate) fn time_of_day(ms: u64) -> String {
    local(ms).map_or_else(|| "-".to_owned(), |at| at.format("%H:%M:%S%.3f").to_string())
}

fn local(ms: u64) -> Option<DateTime<Local>> {
    let ms = i64::try_from(ms).ok()?;
    Some(Utc.timestamp_millis_opt(ms).single()?.with_timezone(&Local))
}

/// `number` per second over `ms`; `None` where that says nothing.
pub(crate) fn rate(number: u64, ms: u64) -> Option<u64> {
    if ms == 0 || number == 0 {
        return None;
    }
    u64::try_from(u128::from(number) * 1000 / u128::from(ms)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (3_285_210, "3,285,210")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(0, "row"), "0 rows");
    }

    #[test]
    fn bytes_keep_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 * 1024, "10.0 KiB"),
            (512 << 20, "512 MiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn durations_use_two_units() {
        let cases = [
            (0, "0 ms"),
            (999, "999 ms"),
            (4_250, "4.2 s"),
            (59_999, "59.9 s"),
            (65_000, "1m 05s"),
            (7_380_000, "2h 03m"),
            (273_600_000, "3d 04h"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text, "{ms}");
        }
        assert_eq!(estimate(8), "8s");
        assert_eq!(estimate(130), "2m 10s");
    }

    #[test]
    fn rates_need_time_and_rows() {
        assert_eq!(rate(1000, 500), Some(2000));
        assert_eq!(rate(0, 500), None);
        assert_eq!(rate(10, 0), None);
        assert_eq!(rate(u64::MAX, 1), None);
    }

    #[test]
    fn a_clock_that_runs_behind_is_just_now() {
        assert_eq!(ago(2_000, 1_000), "just now");
        assert_eq!(ago(1_000, 4_000), "3s ago");
    }
}
