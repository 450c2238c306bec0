//! How what is asked over HTTP is answered: as JSON, and a refusal with its reason.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::cni::Problem;

/// Runs the work to its end even when the one who asked is gone: half an allocation helps nobody.
pub(super) async fn finish<T: Serialize + Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<Response, Refusal> {
    match tokio::spawn(work).await {
        Ok(Ok(answer)) => Ok(Json(answer).into_response()),
        Ok(Err(problem)) => Err(problem.into()),
        Err(ended) => Err(Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            problem: Problem {
                reason: format!("the agent failed in this request: {ended}"),
                retry: true,
            },
        }),
    }
}

/// Why a request is not granted.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) problem: Problem,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            problem,
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self {
            status: rejection.status(),
            problem: Problem {
                reason: rejection.body_text(),
                retry: false,
            },
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}
