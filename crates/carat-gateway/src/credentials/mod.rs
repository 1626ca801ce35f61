//! What proves to a provider who asks, where a header that is always the same will not do.

mod aws;
mod google;
mod sigv4;

use bytes::Bytes;
use http::Request;

use crate::failure::Failure;
use crate::upstream::Upstream;

pub(crate) use aws::{Aws, AwsText};
pub(crate) use google::Google;

/// How requests of a provider are made its account's own.
#[derive(Debug)]
pub(crate) enum Proof {
    /// By the provider's headers alone.
    Headers,
    /// Each is signed.
    Aws(Aws),
    /// By a token that is fetched now and then.
    Google(Box<Google>),
}

impl Proof {
    /// Adds what is needed to a request that is complete.
    ///
    /// # Errors
    /// When there are no keys, or they are not accepted.
    pub(crate) async fn add(&self, request: &mut Request<Bytes>, upstream: &Upstream) -> Result<(), Failure> {
        match self {
            Self::Headers => Ok(()),
            Self::Aws(aws) => aws.sign(request),
            Self::Google(google) => {
                google::insert(request, google.header(upstream).await?);
                Ok(())
            }
        }
    }
}
