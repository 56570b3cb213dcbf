//! Time and chance, as arguments.

use std::fmt;
use time::OffsetDateTime;

/// Where the API takes the time and its random numbers from.
pub trait Surroundings: Send + Sync + fmt::Debug {
    /// The present moment.
    fn now(&self) -> OffsetDateTime;
    /// A number nobody can guess.
    fn random(&self) -> u64;
}

/// The machine's clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Surroundings for Machine {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// `2021-03-05T13:34:15.833-08:00`: how Compute writes a moment, in the time of its home.
pub fn pacific_timestamp(at: OffsetDateTime) -> String {
    let offset_hours = if is_daylight_saving(at) { -7 } else { -8 };
    let local = at + time::Duration::hours(offset_hours);
    format!("{}.{:03}-{:02}:00", seconds_text(local), local.millisecond(), -offset_hours)
}

/// `2021-03-05T21:34:15.833123Z`: how the other APIs write a moment.
pub fn utc_timestamp(at: OffsetDateTime) -> String {
    let utc = at.to_offset(time::UtcOffset::UTC);
    format!("{}.{:06}Z", seconds_text(utc), utc.microsecond())
}

fn seconds_text(at: OffsetDateTime) -> String {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Whether California's clocks are forward: from 10:00 UTC of the second Sunday of March to 09:00 UTC
/// of the first Sunday of November.
fn is_daylight_saving(at: OffsetDateTime) -> bool {
    let utc = at.to_offset(time::UtcOffset::UTC);
    let (month, day, hour) = (u8::from(utc.month()), utc.day(), utc.hour());
    let from_sunday = utc.weekday().number_days_from_sunday();
    // The day of the month of the latest Sunday, today included; not positive before the first.
    let sunday = i16::from(day) - i16::from(from_sunday);
    match month {
        4..=10 => true,
        3 => sunday > 7 && (sunday < i16::from(day) || sunday > 14 || hour >= 10),
        11 => sunday < 1 || (sunday == i16::from(day) && sunday <= 7 && hour < 9),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_moment_is_written_in_californian_time_summer_and_winter() {
        for (at, text) in [
            (datetime!(2021-03-05 21:34:15.833 UTC), "2021-03-05T13:34:15.833-08:00"),
            (datetime!(2026-03-08 09:59:59 UTC), "2026-03-08T01:59:59.000-08:00"),
            (datetime!(2026-03-08 10:00:00 UTC), "2026-03-08T03:00:00.000-07:00"),
            (datetime!(2026-03-10 01:00:00 UTC), "2026-03-09T18:00:00.000-07:00"),
            (datetime!(2026-03-15 01:00:00 UTC), "2026-03-14T18:00:00.000-07:00"),
            (datetime!(2026-07-01 00:00:00 UTC), "2026-06-30T17:00:00.000-07:00"),
            (datetime!(2026-11-01 08:59:59 UTC), "2026-11-01T01:59:59.000-07:00"),
            (datetime!(2026-11-01 09:00:00 UTC), "2026-11-01T01:00:00.000-08:00"),
            (datetime!(2026-11-08 08:00:00 UTC), "2026-11-08T00:00:00.000-08:00"),
            (datetime!(2025-11-01 12:00:00 UTC), "2025-11-01T05:00:00.000-07:00"),
        ] {
            assert_eq!(pacific_timestamp(at), text);
        }
    }
}
