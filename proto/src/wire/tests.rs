use super::*;

#[test]
fn a_message_without_a_kind_is_an_error_and_no_panic() {
    let error = crate::message::ToWorker::try_from(pb::ToWorker { kind: None }).unwrap_err();
    assert_eq!(error, WireError::UnknownKind { message: "to_worker" });
}
