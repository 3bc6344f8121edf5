//! Custom objects against the published fields of their definitions: strictly, nothing unknown passes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::render::{objects, title};

/// Schemas by group, version and kind.
#[derive(Debug, Default)]
pub struct Definitions(BTreeMap<(String, String), Value>);

impl Definitions {
    /// Reads all definitions of a folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut definitions = Self::default();
        for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let text = std::fs::read_to_string(&path)?;
            for object in objects(&text).with_context(|| path.display().to_string())? {
                definitions.add(&object);
            }
        }
        Ok(definitions)
    }

    fn add(&mut self, definition: &Value) {
        let spec = &definition["spec"];
        let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
        for version in spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true) {
            let key = (format!("{group}/{}", text(&version["name"])), kind.clone());
            self.0.insert(key, version["schema"]["openAPIV3Schema"].clone());
        }
    }

    /// Whether the kind is a custom one.
    pub fn knows(&self, object: &Value) -> bool {
        self.0.contains_key(&(text(&object["apiVersion"]), text(&object["kind"])))
    }

    /// What does not fit, a line each; `None` when the kind is unknown.
    pub fn findings(&self, object: &Value) -> Option<Vec<String>> {
        let schema = self.0.get(&(text(&object["apiVersion"]), text(&object["kind"])))?;
        let mut findings = Vec::new();
        let fields = object.as_object().into_iter().flatten();
        for (name, value) in fields.filter(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&name.as_str())) {
            let Some(inner) = schema["properties"].get(name) else {
                findings.push(format!("{}: .{name}: unknown field", title(object)));
                continue;
            };
            check(value, inner, &format!("{}: .{name}", title(object)), &mut findings);
        }
        missing(object, schema, &title(object), &mut findings);
        Some(findings)
    }
}

fn check(value: &Value, schema: &Value, path: &str, findings: &mut Vec<String>) {
    if !fits(value, schema) {
        findings.push(format!("{path}: not of type {}", text(&schema["type"])));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        findings.push(format!("{path}: {value} is none of {}", Value::from(allowed.clone())));
    }
    for (bound, is_within) in [("minimum", 1.0), ("maximum", -1.0)] {
        if let (Some(limit), Some(number)) = (schema[bound].as_f64(), value.as_f64())
            && number * is_within < limit * is_within
        {
            findings.push(format!("{path}: {number} is beyond the {bound}, {limit}"));
        }
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(item, &schema["items"], &format!("{path}[{index}]"), findings);
            }
        }
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = format!("{path}.{name}");
                match (schema["properties"].get(name), schema.get("additionalProperties")) {
                    (Some(known), _) => check(inner, known, &path, findings),
                    (None, Some(any)) => check(inner, any, &path, findings),
                    (None, None) if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
                    (None, None) => findings.push(format!("{path}: unknown field")),
                }
            }
            missing(value, schema, path, findings);
        }
        _ => {}
    }
}

fn missing(value: &Value, schema: &Value, path: &str, findings: &mut Vec<String>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            findings.push(format!("{path}: lacks {name}"));
        }
    }
}

fn fits(value: &Value, schema: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true, // no type: anything
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definitions() -> Definitions {
        let mut definitions = Definitions::default();
        definitions.add(&json!({ "spec": {
            "group": "g.io", "names": { "kind": "Thing" },
            "versions": [{ "name": "v1", "served": true, "schema": { "openAPIV3Schema": {
                "type": "object", "required": ["spec"],
                "properties": { "spec": { "type": "object", "required": ["size"], "properties": {
                    "size": { "type": "integer", "minimum": 1 },
                    "mode": { "type": "string", "enum": ["a", "b"] },
                    "port": { "x-kubernetes-int-or-string": true },
                    "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                    "parts": { "type": "array", "items": { "type": "object", "properties": { "n": { "type": "integer" } } } },
                } } },
            } } }],
        } }));
        definitions
    }

    fn of(spec: Value) -> Vec<String> {
        let object = json!({ "apiVersion": "g.io/v1", "kind": "Thing", "metadata": { "name": "x" }, "spec": spec });
        definitions().findings(&object).unwrap()
    }

    #[test]
    fn what_fits_passes() {
        let spec = json!({ "size": 2, "mode": "b", "port": "http", "labels": { "q": "r" }, "parts": [{ "n": 1 }] });
        assert_eq!(of(spec), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_misfit_is_found() {
        assert_eq!(of(json!({})), ["Thing/x: .spec: lacks size"]);
        assert_eq!(of(json!({ "size": 0 })), ["Thing/x: .spec.size: 0 is beyond the minimum, 1"]);
        assert_eq!(of(json!({ "size": "1" })), ["Thing/x: .spec.size: not of type integer"]);
        assert_eq!(of(json!({ "size": 1, "mode": "c" })), [r#"Thing/x: .spec.mode: "c" is none of ["a","b"]"#]);
        assert_eq!(of(json!({ "size": 1, "sise": 1 })), ["Thing/x: .spec.sise: unknown field"]);
        assert_eq!(of(json!({ "size": 1, "labels": { "a": 1 } })), ["Thing/x: .spec.labels.a: not of type string"]);
        assert_eq!(of(json!({ "size": 1, "parts": [{ "m": 1 }] })), ["Thing/x: .spec.parts[0].m: unknown field"]);
    }

    #[test]
    fn another_kind_is_unknown() {
        assert!(definitions().findings(&json!({ "apiVersion": "v1", "kind": "Thing" })).is_none());
    }
}
