//! Braces in patterns: `a{b,c}` stands for `ab` and `ac`.

use rustix::io::Errno;

use crate::vhd_util::Refused;

/// Expands all braces, also nested ones, from left to right. One that is not closed stands for itself, as in a shell.
///
/// # Errors
/// One that stands for more than [`MOST`].
pub(super) fn expand(pattern: &str) -> Result<Vec<String>, Refused> {
    let mut done = Vec::new();
    let mut open = vec![(String::new(), pattern.to_owned())];
    while let Some((fixed, rest)) = open.pop() {
        let Some((before, alternatives, after)) = split(&rest) else {
            done.push(fixed + &rest);
            continue;
        };
        let fixed = fixed + before;
        if done.len() + open.len() + alternatives.len() > MOST {
            return Err(Refused::image("-m", Errno::TOOBIG, format!("the braces stand for more than {MOST} patterns")));
        }
        open.extend(alternatives.iter().rev().map(|part| (fixed.clone(), format!("{part}{after}"))));
    }
    Ok(done)
}

/// The most patterns that one may stand for.
const MOST: usize = 1 << 20;

/// Splits a pattern at its first braces that are closed: what is before, the alternatives, what is after.
fn split(pattern: &str) -> Option<(&str, Vec<&str>, &str)> {
    for (start, _) in pattern.match_indices('{') {
        let (mut depth, mut from, mut parts) = (0_usize, start + 1, Vec::new());
        for (at, character) in pattern.char_indices().skip_while(|(at, _)| *at < start) {
            match character {
                '{' => depth += 1,
                ',' if depth == 1 => {
                    parts.push(&pattern[from..at]);
                    from = at + 1;
                }
                '}' if depth == 1 => {
                    parts.push(&pattern[from..at]);
                    return Some((&pattern[..start], parts, &pattern[at + 1..]));
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_are_expanded_from_left_to_right() {
        for (pattern, expanded) in [
            ("*.vhd", &["*.vhd"][..]),
            ("/sr/{a,b}*.vhd", &["/sr/a*.vhd", "/sr/b*.vhd"]),
            ("{a,b}{1,2}", &["a1", "a2", "b1", "b2"]),
            ("x{a,{b,c}d}y", &["xay", "xbdy", "xcdy"]),
            ("{a}", &["a"]),
            ("a{,b}", &["a", "ab"]),
            ("{a,b", &["{a,b"]),
            ("{{a,b}", &["{a", "{b"]),
            ("a}b", &["a}b"]),
        ] {
            assert_eq!(expand(pattern).unwrap(), expanded, "{pattern}");
        }
    }

    #[test]
    fn no_pattern_stands_for_too_many() {
        assert!(expand(&"{a,b}".repeat(64)).is_err());
        let many = format!("{{{}}}", vec!["x"; 12_000].join(","));
        assert_eq!(expand(&many).unwrap().len(), 12_000);
    }
}
