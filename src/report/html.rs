//! `index.html`: one page that needs nothing else. No script, no network; figures are in it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::cells::{Cells, Columns, Figure, OTHER_SCHEDULE, percent};
use super::origin::{command, origins, run_name};
use super::{Report, Section, notes};

const STYLE: &str = include_str!("style.css");

/// The whole file.
pub(super) fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.title()) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (report.title()) }
                @for section in &report.tables {
                    section id=(section.table.name) {
                        @if report.tables.len() > 1 { h2 { (section.table.title) } }
                        (table(section))
                        @for drawn in &section.figures {
                            figure {
                                // invariant: drawn by `chart`, which escapes every text in it
                                div.wide { (PreEscaped(&drawn.drawing.svg)) }
                                figcaption { (drawn.figure.caption) }
                            }
                        }
                        (provenance(section))
                    }
                }
                footer { "Made " (report.made) " by " (report.build) "." }
            }
        }
    };
    page.into_string()
}

fn table(section: &Section) -> Markup {
    let columns = Columns::of(&section.table.rows);
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th {}
                        th.number { "seeds" }
                        th.number colspan="2" { "test error, %" }
                        @if columns.seed { th.number { "Torch7, %" } th.number { "ours − Torch7" } }
                        @if columns.paper { th.number { "paper, %" } th.number { "ours − paper" } }
                    }
                }
                tbody {
                    @for cells in &section.cells {
                        tr {
                            th scope="row" { (cells.label) }
                            td.number { (cells.seeds) }
                            (error(cells))
                            @if columns.seed { (published(&cells.seed_figure)) }
                            @if columns.paper { (published(&cells.paper_figure)) }
                        }
                    }
                }
            }
        }
        ul.notes { @for note in notes::of(section) { li { (note) } } }
    }
}

/// Mean and deviation have a column each, so that decimal points stand below each other.
fn error(cells: &Cells) -> Markup {
    html! {
        @if let Some(mean) = &cells.mean {
            td.number.mean { (mean) }
            td.number.sd { @if let Some(sd) = &cells.sd { "± " (sd) } }
        } @else {
            td.none colspan="2" { (cells.error()) }
        }
    }
}

fn published(figure: &Figure) -> Markup {
    let is_other = figure.difference.as_deref() == Some(OTHER_SCHEDULE);
    html! {
        td.number { (figure.value.as_deref().unwrap_or_default()) }
        td.number.none[is_other] { (figure.difference.as_deref().unwrap_or_default()) }
    }
}

fn provenance(section: &Section) -> Markup {
    let table = &section.table;
    let origins = origins(table);
    if origins.is_empty() {
        return html! {};
    }
    html! {
        details {
            summary { "Provenance: where these runs came from, and how to repeat them" }
            @for origin in &origins {
                @if origins.len() > 1 { p { (origin.runs.join("; ")) } }
                dl { @for (name, value) in &origin.facts { dt { (name) } dd { (value) } } }
            }
            @for row in &table.rows {
                @for run in &row.runs {
                    @if let Some(details) = &run.details {
                        h3 { (run_name(table, &row.label, run)) }
                        dl {
                            dt { "test error" }
                            dd {
                                @match run.test_error() {
                                    Some(error) => { (percent(error)) " %" }
                                    None => { (run.remark().unwrap_or_default()) }
                                }
                            }
                            @if !details.provenance.created.is_empty() {
                                dt { "started" }
                                dd { (details.provenance.created) }
                            }
                            @if !details.provenance.resumed.is_empty() {
                                dt { "resumed" }
                                dd { (details.provenance.resumed.join(", ")) }
                            }
                            dt { "recipe" } dd { code { "sha256 " (details.recipe_sha256) } }
                            @if let Some(hash) = &details.state_sha256 {
                                dt { "final state" }
                                dd { code { "sha256 " (hash) } }
                            }
                            dt { "repeat it" } dd { code { (command(run)) } }
                        }
                    }
                }
            }
        }
    }
}
