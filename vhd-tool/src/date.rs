//! Times as ISO 8601 and C write them, in UTC.

use vhd_core::Timestamp;

/// Days from 0000-03-01 to 2000-01-01, where VHD time starts.
const DAYS_TO_2000: u64 = 730_425;

/// Writes a time as `2026-11-20T14:47:39Z`.
pub(crate) fn iso_utc(timestamp: Timestamp) -> String {
    let (second, [year, month, day]) = civil(timestamp);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Writes a time as C's `ctime` does, `Fri Nov 20 14:47:39 2026`, in UTC.
pub(crate) fn ctime_utc(timestamp: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Sat", "Sun", "Mon", "Tue", "Wed", "Thu", "Fri"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (second, [year, month, day]) = civil(timestamp);
    // 2000-01-01 was a Saturday.
    let (weekday, month) = (DAYS[(timestamp.0 / 86_400 % 7) as usize], MONTHS[month as usize - 1]);
    format!("{weekday} {month}{day:3} {:02}:{:02}:{:02} {year}", second / 3600, second / 60 % 60, second % 60)
}

/// The second of the day; year, month and day.
///
/// Years are counted from March, so that the leap day is the last of its year and months follow one formula (Howard
/// Hinnant, "chrono-compatible low-level date algorithms").
fn civil(timestamp: Timestamp) -> (u64, [u64; 3]) {
    let seconds = u64::from(timestamp.0);
    let (days, second) = (seconds / 86_400 + DAYS_TO_2000, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (second, [era * 400 + year_of_era + u64::from(month <= 2), month, day])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (seconds, text) in [
            (0, "2000-01-01T00:00:00Z"),
            (59 * 86_400, "2000-02-29T00:00:00Z"),
            (60 * 86_400, "2000-03-01T00:00:00Z"),
            (366 * 86_400 - 1, "2000-12-31T23:59:59Z"),
            (848_625_659, "2026-11-22T01:20:59Z"),
            (u32::MAX, "2136-02-07T06:28:15Z"),
        ] {
            assert_eq!(iso_utc(Timestamp(seconds)), text);
        }
        assert_eq!(ctime_utc(Timestamp(0)), "Sat Jan  1 00:00:00 2000");
        assert_eq!(ctime_utc(Timestamp(848_625_659)), "Sun Nov 22 01:20:59 2026");
    }
}
