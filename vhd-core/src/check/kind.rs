//! Every kind of finding there is.

use super::Severity;

/// A kind of finding. Codes are stable: programs may go by them.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

macro_rules! kinds {
    ($($name:ident $code:literal $severity:ident $meaning:literal $remedy:literal)*) => {
        $(pub(super) const $name: Kind =
            Kind { code: $code, severity: Severity::$severity, meaning: $meaning, remedy: $remedy };)*

        /// All kinds, by what they are about.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    FOOTER_LOST "footer-lost" Error
        "Neither the end nor the start of the file is a footer: no VHD, or one that has lost both."
        "None without knowing the disk's size and kind; restore a backup, or cut the file where its last footer is."
    FOOTER_END_LOST "footer-end-lost" Error
        "The footer at the end is missing or damaged, and the copy at the start is used. Many readers look only at the end."
        "`vhd-tool repair` writes it anew from the copy."
    FOOTER_511 "footer-511" Warning
        "The footer at the end has 511 bytes, as Virtual PC wrote it before 2004. Many readers refuse it."
        "`vhd-tool repair` makes it 512 bytes long."
    FOOTER_COPY_LOST "footer-copy-lost" Warning
        "The copy of the footer at the start is damaged: nothing is left should the end be lost, too."
        "`vhd-tool repair` writes it anew from the end."
    FOOTER_COPY_DIFFERS "footer-copy-differs" Warning
        "Both footers are whole and say different things. The one at the end counts."
        "`vhd-tool repair` makes the copy the same."
    RESIZE_UNFINISHED "resize-unfinished" Error
        "A journaled resize of blktap's was interrupted: the tables may not match the data."
        "`vhd-tool repair --journal FILE` reverts it with its journal."
    SIZE_ODD "size-odd" Warning
        "The disk is no whole number of sectors; what is left over cannot be read."
        "`vhd-tool resize` to whole sectors."
    GEOMETRY_DIFFERS "geometry-differs" Warning
        "The geometry gives another size than the size itself, and some readers go by it for this creator."
        "`vhd-tool convert`: the copy says its size in one way only."
    SAVED_STATE "saved-state" Info
        "The virtual machine was suspended when it last used the disk."
        "None needed; do not change the disk before the machine has been resumed."
    FIXED_SHORT "fixed-short" Error
        "The file of a fixed disk is shorter than the disk."
        "Restore a backup; or make the file longer, which gives zeros where data is lost."
    HEADER_DAMAGED "header-damaged" Error
        "The header cannot be used: without it nothing says where blocks are."
        "`vhd-tool repair`, where enough of it is left to prove what it said; else a backup."
    HEADER_FIELD "header-field" Info
        "A field that nothing reads has a value that no writer gives it."
        "None needed."
    TABLE_OUTSIDE "table-outside" Error
        "The header or the BAT would lie outside the file."
        "Restore a backup: the file was cut, or the field that says where it lies is damaged."
    TABLE_OVERLAP "table-overlap" Error
        "Two tables lie over each other: a change to one destroys the other."
        "Copy what can be read with `vhd-tool convert`; writing is refused."
    TABLES_BEHIND "tables-behind-blocks" Warning
        "The header, the BAT, the batmap or a locator does not lie where tapdisk takes it to lie, before the first block: tapdisk overwrites it when a guest writes."
        "`vhd-tool repair`, while nothing uses the image; a resize and `vhd-tool compact` mend it, too."
    TABLES_ELSEWHERE "tables-elsewhere" Info
        "Tables do not all lie before the first block, as other writers than blktap place them."
        "None needed; `vhd-tool compact` brings them there."
    BAT_SHORT "bat-short" Error
        "The disk has more blocks than the BAT has entries."
        "Restore a backup: the size or the number of entries is damaged."
    BAT_ENTRY "bat-entry" Error
        "The BAT puts a block where none can be. The block cannot be read."
        "`vhd-tool repair` gives the block up and lists its sectors as lost."
    BAT_BEYOND_DISK "bat-beyond-disk" Info
        "A BAT entry past the end of the disk is in use, as after making a disk smaller."
        "None needed; `vhd-tool compact` gives the space back."
    BLOCK_TRUNCATED "block-truncated" Error
        "The file ends within a block: what lay past its end is lost."
        "`vhd-tool repair` keeps what is there, and lists what is lost."
    BLOCK_OVERLAP "block-overlap" Error
        "Two blocks lie over each other: what is written to one changes the other."
        "`vhd-tool repair`, where it can be proved whose the data is; else restore a backup of one of them."
    BLOCK_OVER_LOCATOR "block-over-locator" Error
        "A block lies over the text that names the parent: one destroys the other."
        "Copy what can be read with `vhd-tool convert`."
    BLOCK_PLACE "block-place" Info
        "One block does not lie on the 4 KiB boundary on which all others do: its BAT entry may be damaged."
        "Compare its content with a backup; none needed where another program wrote to the image."
    BLOCK_SIZE "block-size" Info
        "Blocks are not of 2 MiB, which is all that blktap reads."
        "None needed; `vhd-tool convert --block-size 2M` for such readers."
    BATMAP_LOST "batmap-lost" Info
        "The creator promises a batmap and there is none: qemu overwrites it, Xen Orchestra leaves it out. blktap does not open this image."
        "`vhd-tool repair` makes it anew from the bitmaps; none needed for other readers."
    BATMAP_CHECKSUM "batmap-checksum" Warning
        "The batmap's checksum is wrong. The bitmaps say the same and are used."
        "`vhd-tool repair` makes it anew from the bitmaps."
    BATMAP_WRONG "batmap-wrong" Error
        "The batmap says that a block is full, its bitmap that it is not: blktap reads garbage."
        "`vhd-tool repair` makes it anew from the bitmaps."
    BATMAP_STALE "batmap-stale" Warning
        "The batmap says that a block is full which is not allocated: once it is, blktap reads garbage."
        "`vhd-tool repair` makes it anew from the bitmaps."
    BATMAP_BEHIND "batmap-behind" Info
        "Full blocks are not in the batmap; readers look at their bitmaps instead."
        "None needed."
    DATA_UNMARKED "data-unmarked" Info
        "Sectors hold data that the bitmap does not show (found by `--deep`), as when power fails in a write."
        "None needed, unless the bitmap is what was damaged: then restore a backup."
    STRAY_BYTES "stray-bytes" Info
        "Bytes between the last block, or the end of a fixed disk, and the footer belong to nothing."
        "None needed; `vhd-tool compact` cuts them off."
    LOCATOR_PLACE "locator-place" Warning
        "A parent locator does not lie in the file, or lies over a table."
        "`vhd-tool repair` writes the locators anew, if the parent can be found."
    LOCATOR_ROOM "locator-room" Warning
        "A parent locator is longer than the room that it has."
        "`vhd-tool repair` writes the locators anew, if the parent can be found."
    LOCATOR_TEXT "locator-text" Warning
        "A parent locator is no text of its kind."
        "`vhd-tool repair` writes the locators anew, if the parent can be found."
    LOCATOR_DIFFERS "locator-differs" Info
        "A parent locator and the header name different parents: Xen Orchestra relinks by the header alone, or a relink has not ended. The unique id in the header decides."
        "None needed; `vhd-tool repair` makes the locators name the parent that has that unique id."
    LOCATOR_BYTES "locator-bytes" Info
        "A streamed image counts the room of its parent locators in bytes. Xen Orchestra counts sectors there, and takes what follows for a part of the locators."
        "None needed for other readers; `vhd-tool stream` sends it anew in sectors."
    LOCATOR_NONE "locator-none" Error
        "Nothing says where the parent is."
        "Put the parent beside the image under its old name; the header's unique id tells which it is."
    PARENT_MISSING "parent-missing" Error
        "The parent is not where the image says, or may not be used from there."
        "Put it there, or allow its folder with `--parent-root`."
    PARENT_IDENTITY "parent-identity" Error
        "The file that the image names is not its parent: its unique id is another. Reading through it gives garbage."
        "Put the right file there; `vhd-tool tree` shows who is who."
    PARENT_UNREADABLE "parent-unreadable" Error
        "A parent is damaged or cannot be read."
        "Check and repair the parent."
    PARENT_LARGER "parent-larger" Warning
        "The parent's disk is larger than the child's, which hides its end."
        "None needed if the child was made smaller on purpose."
    PARENT_MODIFIED "parent-modified" Info
        "The parent's file has changed since the child was linked to it. Merging does that, and so do copies."
        "None needed, unless somebody else wrote to the parent."
    CHAIN_CYCLE "chain-cycle" Error
        "Following the parents leads back to where it began."
        "Relink one of them to its true parent."
    CHAIN_DEPTH "chain-depth" Error
        "The chain is deeper than is allowed."
        "Merge it with `vhd-tool coalesce`."
}
