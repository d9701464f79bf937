//! Wrong lines that no test can notice, each with the reason.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::sites::Site;

/// The table in `docs/mutants.md`: file, what is done, the line, the reason.
pub(crate) struct Explained(HashMap<(String, String, String), String>);

impl Explained {
    /// Reads the rows of the table: a file in backquotes, what is done, the line in backquotes, the reason.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let row = |line: &str| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
            let [file, what, line, reason] = cells[..] else { return None };
            // A bar in a cell is written as in all tables.
            let line = line.trim_matches('`').replace("\\|", "|");
            let key = (file.trim_end_matches('`').to_owned(), what.to_owned(), line);
            Some((key, reason.trim_end_matches(" |").to_owned()))
        };
        Ok(Self(text.lines().filter_map(row).collect()))
    }

    pub(crate) fn reason(&self, file: &Path, site: &Site) -> Option<&str> {
        let key = (file.to_str()?.to_owned(), site.what.to_owned(), site.text.clone());
        self.0.get(&key).map(String::as_str)
    }
}
