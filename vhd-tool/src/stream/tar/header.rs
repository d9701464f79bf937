//! The header of a member of an archive.
//!
//! Source: POSIX, pax, "ustar Interchange Format".

/// Bytes in a record: a header is one, and content is filled up to whole ones.
pub(super) const RECORD: usize = 512;
/// Where the checksum is, and how long.
const SUM: std::ops::Range<usize> = 148..156;
const SIZE: std::ops::Range<usize> = 124..136;

/// The bytes that fill a member of `size` bytes up.
pub(super) fn padding(size: u64) -> u64 {
    size.next_multiple_of(RECORD as u64) - size
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size: u64,
    /// Whether it is an ordinary file.
    pub(super) is_file: bool,
}

/// Makes the header of an ordinary file, whose name has at most 100 bytes.
pub(super) fn encode(name: &str, size: u64) -> [u8; RECORD] {
    let mut header = [0; RECORD];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000400\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(SIZE.start, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum = format!("{:06o}\0 ", sum(&header));
    header[SUM].copy_from_slice(sum.as_bytes());
    header
}

/// Sums the bytes, those of the checksum counted as spaces.
fn sum(header: &[u8; RECORD]) -> u64 {
    let of = |(at, &byte): (usize, &u8)| u64::from(if SUM.contains(&at) { b' ' } else { byte });
    header.iter().enumerate().map(of).sum()
}

/// Reads a header; `None` where its checksum or a number in it is wrong.
pub(super) fn decode(header: &[u8; RECORD]) -> Option<Header> {
    if octal(&header[SUM])? != sum(header) {
        return None;
    }
    let text = |field: &[u8]| {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    let with_prefix = header[257..263] == *b"ustar\0" && !prefix.is_empty();
    let name = if with_prefix { format!("{prefix}/{name}") } else { name };
    Some(Header { name, size: number(&header[SIZE])?, is_file: matches!(header[156], 0 | b'0') })
}

/// Reads a number: octal digits, or binary where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, rest) => {
            rest.iter().try_fold(0_u64, |number, &byte| number.checked_mul(256).map(|number| number + u64::from(byte)))
        }
        (first, _) if first & 0x80 != 0 => None,
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(if digits.is_empty() { "0" } else { digits }, 8).ok().filter(|_| !digits.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let header = encode("Ref:1/00000007", 1 << 20);
        let expected = Header { name: "Ref:1/00000007".into(), size: 1 << 20, is_file: true };
        assert_eq!(decode(&header), Some(expected));
        for at in 0..RECORD {
            let mut bad = header;
            bad[at] ^= 1;
            assert!(decode(&bad).is_none() || SUM.contains(&at), "byte {at}");
        }
    }

    #[test]
    fn sizes_may_be_binary_but_not_without_end() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b"+0000000007\0"), None);
        assert_eq!(number(b"77777777777 "), Some((1 << 33) - 1));
    }
}
