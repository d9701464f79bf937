//! Sizes as people write and read them.

use std::fmt;

use vhd_core::{BlockSize, ByteCount};

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or something after it that is no suffix.
    #[error("not a size: give bytes, or a whole number with K, M, G or T, as in 64M")]
    Malformed,
    /// It does not fit.
    #[error("larger than 2^64 bytes")]
    TooLarge,
    /// Blocks have few possible sizes.
    #[error("a block size is a power of two from 4K to 256M")]
    BlockSize,
}

/// Reads `4096`, `64M`, `2TiB`, `512kb`: all suffixes are powers of 1024, in any case.
pub fn parse(text: &str) -> Result<ByteCount, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::Malformed);
    }
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(SizeError::Malformed),
    };
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).map(ByteCount).ok_or(SizeError::TooLarge)
}

/// Reads the size of a block.
pub fn parse_block_size(text: &str) -> Result<BlockSize, SizeError> {
    u32::try_from(parse(text)?.0).ok().and_then(BlockSize::new).ok_or(SizeError::BlockSize)
}

/// A size as people read it: `64.0 MiB`.
pub struct Human(pub ByteCount);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.0;
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let text = match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
            None => format!("{bytes} B"),
            Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        };
        f.pad(&text)
    }
}

/// A size for people and for programs: `64.0 MiB (67108864 bytes)`.
pub fn both(size: ByteCount) -> String {
    if size.0 < 1024 { format!("{size} bytes") } else { format!("{} ({size} bytes)", Human(size)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024_in_any_case() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("7b", 7),
            ("512K", 512 << 10),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("3gib", 3 << 30),
            (" 2T ", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(ByteCount(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "1.5G", "64X", "64 M", "0x10", "64Mi", "5iB"] {
            assert_eq!(parse(text), Err(SizeError::Malformed), "{text}");
        }
        assert_eq!(parse("99999999999999999999"), Err(SizeError::TooLarge));
        assert_eq!(parse("16777216T"), Err(SizeError::TooLarge));
        assert_eq!(parse("16777215T"), Ok(ByteCount(16_777_215 << 40)));
    }

    #[test]
    fn block_sizes_are_powers_of_two_within_limits() {
        assert_eq!(parse_block_size("2M"), Ok(BlockSize::DEFAULT));
        for text in ["3M", "2K", "512M", "8G"] {
            assert_eq!(parse_block_size(text), Err(SizeError::BlockSize), "{text}");
        }
    }

    #[test]
    fn people_read_one_decimal() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2040 << 30, "2.0 TiB")]
        {
            assert_eq!(Human(ByteCount(bytes)).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Human(ByteCount(1024))), "  1.0 KiB");
    }
}
