//! What has to be said below a table, so that no number is taken for what it is not.

use super::Section;
use super::cells::Columns;
use super::course::describe;
use super::model::{Row, Table};

/// Sentences, each with its full stop.
pub(super) fn of(section: &Section) -> Vec<String> {
    let table = &section.table;
    let mut notes = vec![
        "Test error after the last epoch, never the best over epochs; mean ± sample standard deviation over seeds."
            .to_owned(),
    ];
    notes.extend(courses(table));
    let columns = Columns::of(&table.rows);
    if columns.seed {
        notes.push("Torch7: figure of the public Torch7 implementation, one run.".to_owned());
    }
    if columns.paper {
        notes.push("Paper: He et al. 2015, Deep Residual Learning, table 6.".to_owned());
    }
    let departures: Vec<String> = section.cells.iter().map(|cells| cells.departures.join(", ")).collect();
    notes.extend(by_rows(table, &departures, "Other schedule than that of the published figures, so not comparable: "));
    for (row, cells) in table.rows.iter().zip(&section.cells) {
        if let Some(note) = &row.reference.note {
            notes.push(format!("“{}”: {note}.", row.label));
        }
        if !cells.remarks.is_empty() {
            notes.push(format!("“{}”: {}.", row.label, cells.remarks.join("; ")));
        }
    }
    notes
}

/// What the runs are: what all rows share, then what they do not.
fn courses(table: &Table) -> Vec<String> {
    // A row that was not run has seen no data; another of the same set may have.
    let data = |row: &Row| {
        let same = table.rows.iter().filter(|other| other.recipe.data == row.recipe.data);
        row.data().cloned().or_else(|| same.filter_map(Row::data).next().cloned())
    };
    let courses: Vec<_> = table.rows.iter().map(|row| describe(&row.recipe, data(row).as_ref())).collect();
    let Some(first) = courses.first() else { return Vec::new() };
    let is_shared = |part: usize| courses.iter().all(|course| course[part] == first[part]);
    let select = |course: &[String], shared: bool| {
        let parts = course.iter().enumerate().filter(|(part, text)| is_shared(*part) == shared && !text.is_empty());
        parts.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ")
    };
    let shared = select(first, true);
    let rest: Vec<String> = courses.iter().map(|course| select(course, false)).collect();
    let shared = (!shared.is_empty()).then(|| format!("{shared}."));
    shared.into_iter().chain(by_rows(table, &rest, "")).collect()
}

fn quoted(labels: &[&str]) -> String {
    labels.iter().map(|label| format!("“{label}”")).collect::<Vec<_>>().join(", ")
}

/// What all rows share is said once; else each text with the rows that it is of.
fn by_rows(table: &Table, texts: &[String], before: &str) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (row, text) in table.rows.iter().zip(texts).filter(|(_, text)| !text.is_empty()) {
        match groups.iter_mut().find(|(known, _)| known == text) {
            Some((_, labels)) => labels.push(&row.label),
            None => groups.push((text, vec![&row.label])),
        }
    }
    let sentence = |(text, labels): &(&str, Vec<&str>)| match labels.len() == texts.len() {
        true => format!("{before}{text}."),
        false => format!("{before}{}: {text}.", quoted(labels)),
    };
    groups.iter().map(sentence).collect()
}
