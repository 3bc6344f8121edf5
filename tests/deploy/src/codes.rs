//! The table of exit codes, as the README has it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use crate::tools::checkout;

/// Worth another try, counted by `backoffLimit`.
pub const RETRY: [i64; 3] = [69, 70, 73];
/// Worth another try, not counted.
pub const RESUMABLE: i64 = 75;

/// Codes and meanings of README.md.
pub fn table() -> Result<BTreeMap<i64, String>> {
    let readme = std::fs::read_to_string(checkout().join("README.md")).context("cannot read README.md")?;
    parse(&readme)
}

/// Those after which the same again would end the same way: what is in the table and neither done nor worth a try.
pub fn fatal(table: &BTreeMap<i64, String>) -> Vec<i64> {
    table.keys().copied().filter(|code| *code != 0 && *code != RESUMABLE && !RETRY.contains(code)).collect()
}

fn parse(readme: &str) -> Result<BTreeMap<i64, String>> {
    let (_, section) = readme.split_once("### Exit codes").context("README.md: no section on exit codes")?;
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut table = BTreeMap::new();
    for row in rows {
        let mut cells = row.split('|').map(str::trim).skip(1);
        if let (Some(Ok(code)), Some(meaning)) = (cells.next().map(str::parse), cells.next()) {
            table.insert(code, meaning.to_owned());
        }
    }
    ensure!(!table.is_empty(), "README.md: no table of exit codes");
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_table_are_codes() {
        let text =
            "### Exit codes\n\n| code | meaning | e |\n|---|---|---|\n| 0 | done | |\n| 64 | wrong | x |\n\n| 9 |\n";
        let table = parse(text).unwrap();
        assert_eq!(table.keys().copied().collect::<Vec<_>>(), [0, 64]);
        assert_eq!(fatal(&table), [64]);
    }
}
