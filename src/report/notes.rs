//! What has to be said below a table, so that no number is taken for what it is not.

use super::Section;
use super::cells::Columns;
use super::course::describe;

/// Sentences, each with its full stop.
pub(super) fn of(section: &Section) -> Vec<String> {
    let table = &section.table;
    let mut notes = vec![
        "Test error after the last epoch, never the best over epochs; mean ± sample standard deviation over seeds."
            .to_owned(),
    ];
    let courses: Vec<String> = table.rows.iter().map(|row| describe(&row.recipe, row.data())).collect();
    notes.extend(by_rows(section, &courses, ""));
    let columns = Columns::of(&table.rows);
    if columns.seed {
        notes.push("Torch7: figure of the public Torch7 implementation, one run.".to_owned());
    }
    if columns.paper {
        notes.push("Paper: He et al. 2015, Deep Residual Learning, table 6.".to_owned());
    }
    let departures: Vec<String> = section.cells.iter().map(|cells| cells.departures.join(", ")).collect();
    notes.extend(by_rows(
        section,
        &departures,
        "Other schedule than that of the published figures, so not comparable: ",
    ));
    for (row, cells) in table.rows.iter().zip(&section.cells) {
        if let Some(note) = &row.reference.note {
            notes.push(format!("{}: {note}.", row.label));
        }
        if !cells.remarks.is_empty() {
            notes.push(format!("{}: {}.", row.label, cells.remarks.join("; ")));
        }
    }
    notes
}

/// What all rows share is said once; else each text with the rows that it is of.
fn by_rows(section: &Section, texts: &[String], before: &str) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (row, text) in section.table.rows.iter().zip(texts).filter(|(_, text)| !text.is_empty()) {
        match groups.iter_mut().find(|(known, _)| known == text) {
            Some((_, labels)) => labels.push(&row.label),
            None => groups.push((text, vec![&row.label])),
        }
    }
    let sentence = |(text, labels): &(&str, Vec<&str>)| match labels.len() == texts.len() {
        true => format!("{before}{text}."),
        false => format!("{before}{}: {text}.", labels.join("; ")),
    };
    groups.iter().map(sentence).collect()
}
