//! Messages inside gRPC's frames: a byte that says whether it is compressed, a length, the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::door::{BODY_BYTES_MAX, BODY_PATIENCE};
use crate::error::{ApiError, Reason};

/// The bytes before each message.
const HEAD_BYTES: usize = 5;

/// A message in its frame.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes the first message off the bytes that have arrived; none while it is incomplete.
fn taken(arrived: &mut BytesMut) -> Result<Option<Bytes>, ApiError> {
    let invalid = |sentence: &str| Err(ApiError::new(Reason::BadRequest, sentence));
    let Some((head, after)) = arrived.split_at_checked(HEAD_BYTES) else { return Ok(None) };
    let length = (&head[1..]).get_u32() as usize;
    if head[0] != 0 {
        return Err(ApiError::new(Reason::Unimplemented, "Compressed messages are not served."));
    }
    if length > BODY_BYTES_MAX {
        return invalid("The message is larger than this server reads.");
    }
    if after.len() < length {
        return Ok(None);
    }
    arrived.advance(HEAD_BYTES);
    Ok(Some(arrived.split_to(length).freeze()))
}

/// The first message of a call; what follows stays unread.
pub(super) async fn first_message(mut body: Incoming) -> Result<(Bytes, Incoming), ApiError> {
    let mut arrived = BytesMut::new();
    let reading = async {
        loop {
            if let Some(message) = taken(&mut arrived)? {
                return Ok(message);
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        arrived.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) | None => {
                    let sentence = "The call ended before its first message.";
                    return Err(ApiError::new(Reason::BadRequest, sentence));
                }
            }
        }
    };
    match timeout(BODY_PATIENCE, reading).await {
        Ok(message) => Ok((message?, body)),
        Err(_) => Err(ApiError::new(Reason::BadRequest, "The message took too long.")),
    }
}

/// The message of a call that has one.
pub(super) async fn only_message(body: Incoming) -> Result<Bytes, ApiError> {
    first_message(body).await.map(|(message, _)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_its_last_byte_is_there() {
        let frame = framed(b"abc");
        let mut arrived = BytesMut::new();
        for byte in &frame[..frame.len() - 1] {
            arrived.put_u8(*byte);
            assert_eq!(taken(&mut arrived), Ok(None));
        }
        arrived.extend_from_slice(b"cd");
        assert_eq!(taken(&mut arrived), Ok(Some(Bytes::from_static(b"abc"))));
        assert_eq!(&arrived[..], b"d");
    }

    #[test]
    fn compressed_and_endless_messages_are_refused() {
        for frame in [[1, 0, 0, 0, 0], [0, 0xff, 0xff, 0xff, 0xff]] {
            assert!(taken(&mut BytesMut::from(&frame[..])).is_err());
        }
    }
}
