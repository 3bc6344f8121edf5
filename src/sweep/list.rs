//! `lockstep sweep --list`: every row, what it would run, and how far that is.

use serde_json::{Value, json};

use super::plan::{Plan, Row, Sweep};
use super::state::state;
use crate::output;

/// Prints each row, for people or for programs.
pub fn print(plan: &Plan, json: bool) {
    for sweep in &plan.sweeps {
        if !json {
            output::line(format!("{}: {}", sweep.name, sweep.title));
        }
        for row in &sweep.rows {
            if json {
                output::json(&object(plan, sweep, row));
            } else {
                text(plan, row).into_iter().for_each(output::line);
            }
        }
    }
}

/// One object a row, the whole recipe in it.
fn object(plan: &Plan, sweep: &Sweep, row: &Row) -> Value {
    let config = &plan.configs[row.config];
    let runs: Vec<Value> = plan
        .runs_of(row)
        .map(|run| {
            let mut object = json!(state(&run.dir));
            object["seed"] = run.seed.into();
            object["dir"] = json!(run.dir);
            object
        })
        .collect();
    json!({
        "table": sweep.name,
        "title": sweep.title,
        "label": row.label,
        "slug": config.slug,
        "layers": config.layers(),
        "seed_test_error": row.reference.seed_test_error,
        "paper_test_error": row.reference.paper_test_error,
        "note": row.reference.note,
        "seeds": row.seeds,
        "runs": runs,
        "recipe": config.recipe,
    })
}

fn text(plan: &Plan, row: &Row) -> Vec<String> {
    let config = &plan.configs[row.config];
    let mut lines = vec![format!("  {}  [{}]", row.label, config.slug)];
    for run in plan.runs_of(row) {
        lines.push(format!("    {}  {}", run.dir.display(), state(&run.dir).describe()));
    }
    lines
}
