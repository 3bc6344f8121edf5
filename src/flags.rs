//! Arguments that several subcommands share.

use std::path::PathBuf;

use lockstep_proto::recipe::{Recipe, builtin};
use lockstep_proto::wire::TlsFiles;

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

    /// The same for workers on these devices: on GPUs sums are in no promised order and go in larger buckets, unless the
    /// recipe says otherwise.
    pub fn load_for(&self, devices: &str, otherwise: Option<&str>) -> Result<Recipe, Failure> {
        let is_gpu = devices.trim().starts_with("cuda") || devices.trim() == "all";
        let Some(name) = self.recipe.as_deref().or(otherwise).filter(|_| is_gpu) else {
            return self.load(otherwise);
        };
        Ok(Recipe::load_over(&Recipe::ON_GPUS.map(str::to_owned), name, &self.sets)?)
    }
}

/// Certificates for TLS between the coordinator and its callers.
#[derive(clap::Args, Clone)]
pub struct TlsArgs {
    /// Certificate of this process, PEM.
    #[arg(long, value_name = "FILE", env = "LOCKSTEP_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", env = "LOCKSTEP_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Authority that the other side's certificate must be of; a coordinator with it lets nobody in without one.
    #[arg(long, value_name = "FILE", env = "LOCKSTEP_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The files, unread.
    pub fn files(&self) -> TlsFiles {
        TlsFiles { cert: self.tls_cert.clone(), key: self.tls_key.clone(), ca: self.tls_ca.clone() }
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

#[cfg(test)]
mod tests {
    use lockstep_proto::recipe::Reduction;

    use super::*;

    #[test]
    fn on_gpus_sums_are_fast_unless_the_recipe_says_how() {
        let with = |sets: &[&str]| RecipeArgs {
            recipe: Some("demo".into()),
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
        };
        let reduction = |args: RecipeArgs, devices| args.load_for(devices, None).unwrap().train.reduction;
        for devices in ["cuda", "cuda:0", "cuda:0,cuda:1", "all"] {
            assert_eq!(reduction(with(&[]), devices), Reduction::Fast, "{devices}");
        }
        assert_eq!(reduction(with(&["train.reduction=canonical"]), "cuda:0"), Reduction::Canonical);
        assert_eq!(reduction(with(&[]), "cpu"), Reduction::Canonical);
        assert_eq!(reduction(with(&[]), "host"), Reduction::Canonical);
    }
}
