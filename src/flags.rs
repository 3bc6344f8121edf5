//! Arguments that several subcommands share.

use lockstep_proto::recipe::{Recipe, builtin};

use crate::failure::Failure;
use crate::output;

/// Which recipe, and what differs from it.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// A TOML file, or the name of a recipe inside this program (`lockstep train --list`).
    #[arg(value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// Change a key of the recipe; may be repeated. Values are TOML, a bare word is a string.
    #[arg(long = "set", value_name = "KEY=VALUE", env = "LOCKSTEP_SET")]
    pub sets: Vec<String>,
}

impl RecipeArgs {
    /// Reads, changes and checks it. `otherwise` is used when none was named.
    pub fn load(&self, otherwise: Option<&str>) -> Result<Recipe, Failure> {
        let Some(name) = self.recipe.as_deref().or(otherwise) else {
            let reason = "which recipe? name a file, or one of `lockstep train --list`";
            return Err(Failure::new(lockstep_proto::exit::ExitCode::Usage, reason));
        };
        Ok(Recipe::load(name, &self.sets)?)
    }
}

/// Prints the recipes inside this program.
pub fn list_recipes(json: bool) {
    let width = builtin().iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
    for recipe in builtin() {
        if json {
            output::json(&serde_json::json!({ "name": recipe.name, "summary": recipe.summary }));
        } else {
            output::line(format!("{:width$}  {}", recipe.name, recipe.summary));
        }
    }
}
