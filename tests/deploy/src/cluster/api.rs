//! The API server, by way of `kubectl proxy`, which speaks TLS and shows who we are; and kubectl itself.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// What the server said.
    pub message: String,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Api {
    /// Of `kubectl proxy`.
    pub port: u16,
    /// The program.
    pub kubectl: PathBuf,
    /// Its settings.
    pub kubeconfig: PathBuf,
}

impl Api {
    /// One request; an answer such as 404 is the inner error.
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Result<Value, Refused>> {
        let (kind, text) = body.map_or(("", String::new()), |(kind, value)| (kind, value.to_string()));
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n",
            text.len()
        );
        let (status, body) = exchange(self.port, &(head + &text)).with_context(|| format!("{method} {path}"))?;
        if (200..300).contains(&status) {
            return Ok(Ok(serde_json::from_str(&body).with_context(|| format!("{method} {path}: not JSON"))?));
        }
        let message = serde_json::from_str::<Value>(&body).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        Ok(Err(Refused { status, message: message.unwrap_or(body) }))
    }

    /// An object, if there is one.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        match self.request("GET", path, None)? {
            Ok(object) => Ok(Some(object)),
            Err(refused) if refused.status == 404 => Ok(None),
            Err(refused) => bail!("GET {path}: {} {}", refused.status, refused.message),
        }
    }

    /// The items of a list.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        let list = self.get(path)?.with_context(|| format!("no {path}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Makes an object; one that is there already is left alone.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        match self.request("POST", path, Some(("application/json", object)))? {
            Err(refused) if refused.status != 409 => bail!("POST {path}: {} {}", refused.status, refused.message),
            _ => Ok(()),
        }
    }

    /// Changes an object; one that is gone is no error.
    pub fn patch(&self, path: &str, change: &Value) -> Result<()> {
        match self.request("PATCH", path, Some(("application/strategic-merge-patch+json", change)))? {
            Err(refused) if refused.status != 404 => bail!("PATCH {path}: {} {}", refused.status, refused.message),
            _ => Ok(()),
        }
    }

    /// kubectl with these arguments: whether it succeeded, and all that it said.
    pub fn kubectl(&self, args: &[&str], input: Option<&str>) -> Result<(bool, String)> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no standard input")?;
        stdin.write_all(input.unwrap_or_default().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }

    /// kubectl, which must succeed.
    pub fn must(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let (is_done, said) = self.kubectl(args, input)?;
        ensure!(is_done, "kubectl {}: {said}", args.join(" "));
        Ok(said)
    }
}

fn exchange(port: u16, request: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((status(head)?, body.to_owned()))
}

pub(super) fn status(head: &str) -> Result<u16> {
    head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("no status in the answer")
}

/// A kubeconfig for a server with a certificate of its own and a token.
pub fn kubeconfig(file: &Path, server: &str, token: &str) -> Result<()> {
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{ "name": "here", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "root", "user": { "token": token } }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "root" } }],
    });
    std::fs::write(file, text.to_string()).with_context(|| format!("cannot write {}", file.display()))
}
