//! A reader of journals that knows nothing but their description.

#[derive(Debug)]
pub(super) struct Journal {
    pub(super) id: Vec<u8>,
    pub(super) footer_at: u64,
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: u32,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// Reads a journal by its description alone, blktap's or ours.
pub(super) fn parse(bytes: &[u8]) -> Journal {
    let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"vjournal");
    assert_eq!(u64_at(48), 512, "the first entry of other things");
    let end = u64::from_ne_bytes(bytes[56..64].try_into().unwrap());
    assert_eq!(end, bytes.len() as u64);
    assert!(bytes[80..512].iter().all(|&byte| byte == 0));
    let (mut entries, mut at, mut first_data) = (Vec::new(), 512, None);
    while at < bytes.len() {
        assert_eq!(u64_at(at), 0xaaaa_1234_4321_aaaa);
        let (kind, length) = (u32_at(at + 8), u32_at(at + 12) as usize);
        let mut entry = bytes[at..at + 32 + length].to_vec();
        entry[24..28].fill(0);
        let sum: u32 = entry.iter().map(|&byte| u32::from(byte)).sum();
        assert_eq!(u32_at(at + 24), !sum);
        if kind == 8 {
            first_data.get_or_insert(at as u64);
        }
        entries.push(Entry { kind, at: u64_at(at + 16), bytes: entry.split_off(32) });
        at += 32 + length;
    }
    assert!(entries.is_sorted_by_key(|entry| entry.kind), "metadata first");
    assert_eq!(u64_at(40), first_data.unwrap_or(end), "the first piece of a block");
    let data = entries.iter().filter(|entry| entry.kind == 8).count();
    assert_eq!([u32_at(32), u32_at(36)], [data as u32, (entries.len() - data) as u32]);
    Journal { id: bytes[8..24].to_vec(), footer_at: u64_at(24), entries }
}
