//! How messages are read and written: as by [`tonic_prost`], with buffers that begin small.
//!
//! A control plane has some streams open to every proxy, which say little and seldom; tonic sets 8 KiB aside
//! for each direction of each. Larger messages make the buffers grow, by as much at a time as they begin with.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Bytes set aside for each direction of a stream.
const BUFFER: usize = 1024;
/// Bytes that are sent at once, as tonic does.
const YIELD: usize = 32 * 1024;

/// A [`tonic_prost::ProstCodec`] with small buffers.
#[derive(Debug)]
pub struct SmallCodec<T, U>(PhantomData<fn() -> (T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER, YIELD))
    }
}
