//! What tiny_http's request asks: a question, or why it is none.

use crate::protocol::{Malformed, Reply, Request, Status};
use crate::refusal::Refusal;
use crate::server::access::TurnedAway;
use crate::server::handler::Handler;

/// Reads the question, or finds the reply to what is none.
pub(super) fn understand<'a>(
    request: &'a tiny_http::Request,
    handler: &Handler,
) -> Result<Request<'a>, Reply> {
    for header in request.headers() {
        let (field, value) = (header.field.as_str().as_str(), header.value.as_str());
        let admitted = handler.access.admit(field, value);
        admitted.map_err(turned_away)?;
        let is_type = field.eq_ignore_ascii_case("Content-Type");
        if is_type && holds_parameters(value) && has_body(request) {
            let reason =
                "parameters stand behind a ? in the URL, not in the body; with curl, add -G";
            return Err(Malformed::BadRequest(reason.into()).into());
        }
    }
    let question = Request::parse(request.url(), &handler.caps).map_err(Reply::from)?;
    match request.method() {
        tiny_http::Method::Get | tiny_http::Method::Post => Ok(question),
        method => Err(Reply::refusal(
            Status::MethodNotAllowed,
            Refusal::BadMethod,
            format!("{method} is not for locks; use GET or POST"),
        )
        .with_header("Allow", "GET, POST")),
    }
}

/// What an HTML form sends, or `curl` with `-d`, `-F` and `--json`: parameters that would be taken for heard.
const WITH_PARAMETERS: [&str; 3] = [
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json",
];

fn holds_parameters(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    WITH_PARAMETERS
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known))
}

fn has_body(request: &tiny_http::Request) -> bool {
    request.body_length().is_some_and(|length| length > 0)
}

/// The reply to a request that announces a body which was not read with it.
pub(super) fn body_refused() -> Reply {
    let reason =
        "the question stands in the path; send no body, or at most 1024 bytes of it, not chunked";
    Malformed::BadRequest(reason.into()).into()
}

fn turned_away(why: TurnedAway) -> Reply {
    match why {
        TurnedAway::FromAPage(reason) => {
            Reply::refusal(Status::Forbidden, Refusal::Forbidden, reason)
        }
        TurnedAway::WrongHost(reason) => {
            Reply::refusal(Status::Misdirected, Refusal::WrongHost, reason)
        }
    }
}
