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
    let journal = Journal { id: bytes[8..24].to_vec(), footer_at: u64_at(24), entries };
    journal.assert_blktap_takes_it();
    journal
}

impl Journal {
    /// What blktap insists on before it puts anything back: which entries there are, in which order, where and how long.
    fn assert_blktap_takes_it(&self) {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u64, &byte| number << 8 | u64::from(byte));
        let [end, first, header] = [0, 1, 2].map(|number| &self.entries[number]);
        assert_eq!((end.kind, end.at, end.bytes.len()), (1, self.footer_at, 512));
        assert_eq!((first.kind, first.at, first.bytes.len()), (2, 0, 512));
        assert_eq!((header.kind, header.at, header.bytes.len()), (3, number(&end.bytes[16..24]), 1024));
        let named = header.bytes[576..768].chunks(24).filter(|locator| number(&locator[..4]) > 0);
        let mut rest = self.entries[3..].iter();
        for locator in named {
            let entry = rest.next().expect("each locator has an entry");
            assert_eq!((entry.kind, entry.at), (4, number(&locator[16..24])));
        }
        let bat = rest.next().expect("there is a BAT");
        let length = (number(&header.bytes[28..32]) * 4).next_multiple_of(512);
        assert_eq!((bat.kind, bat.at, bat.bytes.len() as u64), (5, number(&header.bytes[16..24]), length));
        if end.bytes.starts_with(b"conectix")
            && &end.bytes[28..32] == b"tap\0"
            && number(&end.bytes[32..36]) >= 0x1_0002
        {
            let [head, map] = [(); 2].map(|()| rest.next().expect("there is a batmap"));
            assert_eq!((head.kind, head.at, head.bytes.len()), (6, bat.at + length, 512));
            assert_eq!((map.kind, map.at), (7, number(&head.bytes[8..16])));
            assert_eq!(map.bytes.len() as u64, number(&head.bytes[16..20]) * 512);
        }
        assert!(rest.all(|entry| entry.kind == 8), "nothing else than pieces of blocks");
        assert!(self.entries.iter().all(|entry| !entry.bytes.is_empty() && entry.bytes.len() % 512 == 0));
    }
}
