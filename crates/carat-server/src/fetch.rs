//! Images, sounds and videos that requests name by address; [`carat_fetch`] says which are asked.

use carat_api::{ApiError, GenerationRequest, Media, MediaSource, Part};
use carat_fetch::{FETCHES, Fetcher};

use crate::limits::FETCHED_BYTES;

/// Puts bytes in the place of addresses.
pub(crate) async fn fill(fetcher: &Fetcher, request: &mut GenerationRequest) -> Result<(), ApiError> {
    let parts = request.turns.iter_mut().flat_map(|turn| &mut turn.parts);
    let named = parts
        .filter_map(Part::media_mut)
        .filter(|media| matches!(media.source, MediaSource::Url(_)));
    let mut n_bytes = 0;
    for (i, media) in named.enumerate() {
        if i == FETCHES {
            let message = format!("at most {FETCHES} files are fetched for one request; send data");
            return Err(ApiError::field(media.path.clone(), message));
        }
        let bytes = fetch(fetcher, media).await?;
        n_bytes += bytes.len();
        if n_bytes > FETCHED_BYTES {
            let limit = FETCHED_BYTES >> 20;
            let message =
                format!("at most {limit} MB are fetched for one request; name fewer or smaller files");
            return Err(ApiError::field(media.path.clone(), message));
        }
        media.source = MediaSource::Bytes(bytes.into());
    }
    Ok(())
}

async fn fetch(fetcher: &Fetcher, media: &Media) -> Result<Vec<u8>, ApiError> {
    let path = &media.path;
    let refused = |why: &str| ApiError::field(path.clone(), format!("`{path}` cannot be fetched: {why}"));
    let MediaSource::Url(url) = &media.source else {
        return Err(refused("it has no address"));
    };
    let fetched = fetcher.fetch(url).await;
    Ok(fetched.map_err(|refusal| refused(&refusal.to_string()))?.bytes)
}

#[cfg(test)]
mod tests {
    use carat_fetch::MediaUrls;

    use super::*;

    #[tokio::test]
    async fn a_refusal_names_the_place_of_the_address() {
        let media = Media::of_url("messages[0].content[0]", "http://127.0.0.1:1/x").unwrap();
        let error = fetch(&Fetcher::new(MediaUrls::Public), &media).await.unwrap_err();
        assert!(error.message.contains("not a public one"), "{error}");
        assert_eq!(error.param.as_deref(), Some("messages[0].content[0]"));
        let error = fetch(&Fetcher::new(MediaUrls::Refused), &media)
            .await
            .unwrap_err();
        assert!(error.message.contains("data URL"), "{error}");
    }
}
