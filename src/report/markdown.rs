//! `report.md`: tables and figures for a page that renders Markdown.

use std::fmt::Write as _;

use super::cells::{Cells, Columns};
use super::origin::{command, origins, run_name};
use super::{Report, Section, notes};

/// The whole file.
pub(super) fn page(report: &Report) -> String {
    let mut text = format!("# {}\n", escaped(report.title()));
    for section in &report.tables {
        if report.tables.len() > 1 {
            line(&mut text, &format!("\n## {}", escaped(&section.table.title)));
        }
        table(&mut text, section);
        for drawn in &section.figures {
            let figure = &drawn.figure;
            line(&mut text, &format!("\n![{}]({}.svg)\n", figure.title, drawn.stem));
            line(&mut text, &format!("{} Also as [PNG]({}.png).", escaped(&figure.caption), drawn.stem));
        }
        provenance(&mut text, section);
    }
    line(&mut text, &format!("\nMade {} by {}.", report.made, escaped(&report.build)));
    text
}

fn table(text: &mut String, section: &Section) {
    let columns = Columns::of(&section.table.rows);
    let mut head = vec!["", "seeds", "test error, %"];
    if columns.seed {
        head.extend(["Torch7, %", "ours − Torch7"]);
    }
    if columns.paper {
        head.extend(["paper, %", "ours − paper"]);
    }
    line(text, &format!("\n| {} |", head.join(" | ")));
    line(text, &format!("|---{}|", "|--:".repeat(head.len() - 1)));
    for cells in &section.cells {
        let mut fields = vec![escaped(&cells.label), cells.seeds.clone(), escaped(&cells.error())];
        fields.extend(published(cells, columns).iter().map(|field| escaped(field)));
        line(text, &format!("| {} |", fields.join(" | ")));
    }
    line(text, "");
    for note in notes::of(section) {
        line(text, &format!("- {}", escaped(&note)));
    }
}

fn published(cells: &Cells, columns: Columns) -> Vec<String> {
    let mut fields = Vec::new();
    for (_, figure) in [(columns.seed, &cells.seed_figure), (columns.paper, &cells.paper_figure)].iter().filter(|c| c.0)
    {
        fields.push(figure.value.clone().unwrap_or_default());
        fields.push(figure.difference.clone().unwrap_or_default());
    }
    fields
}

fn provenance(text: &mut String, section: &Section) {
    let table = &section.table;
    let origins = origins(table);
    if origins.is_empty() {
        return;
    }
    line(text, "\n<details><summary>Provenance</summary>");
    for origin in &origins {
        line(text, "");
        if origins.len() > 1 {
            line(text, &format!("{}:\n", escaped(&origin.runs.join("; "))));
        }
        for (name, value) in &origin.facts {
            line(text, &format!("- {name}: {}", escaped(value)));
        }
    }
    line(text, "\n| run | test error, % | recipe sha256 | final state sha256 | repeat it |\n|---|--:|---|---|---|");
    for row in &table.rows {
        for run in &row.runs {
            let Some(details) = &run.details else { continue };
            let fields = [
                escaped(&run_name(table, &row.label, run)),
                escaped(&run.test_error().map_or_else(|| run.remark().unwrap_or_default(), super::cells::percent)),
                format!("`{}`", details.recipe_sha256),
                details.state_sha256.as_ref().map(|hash| format!("`{hash}`")).unwrap_or_default(),
                format!("`{}`", command(run).replace('|', "\\|").replace('`', "'")),
            ];
            line(text, &format!("| {} |", fields.join(" | ")));
        }
    }
    line(text, "\n</details>");
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Text that Markdown takes as it is.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => escaped.extend(['\\', c]),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
