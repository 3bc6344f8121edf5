//! The shared secret: `authorization: Bearer …` on every call.

use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::refusal::Refusal;

/// Lets calls through that carry the token; all of them when there is none.
#[derive(Clone)]
pub(crate) struct TokenCheck {
    expected: Option<String>,
}

impl TokenCheck {
    pub(crate) fn new(token: Option<&str>) -> Self {
        Self { expected: token.map(|token| format!("Bearer {token}")) }
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(expected) = &self.expected else { return Ok(request) };
        match request.metadata().get("authorization") {
            None => Err(Refusal::Token { got: "none" }.into()),
            Some(found) if same(found.as_bytes(), expected.as_bytes()) => Ok(request),
            Some(_) => Err(Refusal::Token { got: "another" }.into()),
        }
    }
}

/// Takes the same time wherever the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
