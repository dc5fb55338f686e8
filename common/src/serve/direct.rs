//! One gRPC service that is led past the router.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::response::Response;
use hyper::Request;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer as _, Service};
use tower_http::classify::{GrpcErrorsAsFailures, SharedClassifier};
use tower_http::trace::Trace;

use super::{MakeSpan, trace};

/// A service that is called so often that what the router does for each call counts, and the router for everything else.
#[derive(Clone)]
pub struct Direct<S> {
    service: Traced<S>,
    router: Router,
}

type Traced<S> = Trace<S, SharedClassifier<GrpcErrorsAsFailures>, MakeSpan<Body>>;

impl<S> Direct<S> {
    /// The service is not in the router.
    pub fn new(service: S, router: Router) -> Self {
        Self { service: trace().layer(service), router }
    }
}

impl<S: NamedService> Direct<S> {
    fn is_ours(path: &str) -> bool {
        let below = path.strip_prefix('/').and_then(|path| path.strip_prefix(S::NAME));
        below.is_some_and(|method| method.starts_with('/'))
    }
}

impl<S, B> Service<Request<B>> for Direct<S>
where
    S: NamedService + Service<Request<Body>, Response = hyper::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    B: axum::body::HttpBody<Data = tonic::codegen::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if Self::is_ours(request.uri().path()) {
            let answer = self.service.call(request.map(Body::new));
            Box::pin(async { Ok(answer.await?.map(axum::body::Body::new)) })
        } else {
            Box::pin(self.router.call(request))
        }
    }
}
