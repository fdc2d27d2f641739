//! Content codings: which one an answer is sent in, and the coding itself. It takes a while on a large body, so not on
//! the control thread.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::metrics::text::quality;

/// Quality of brotli: beyond it, a text costs many times as much for a few percent.
const BROTLI_QUALITY: u32 = 1;
const BROTLI_WINDOW: u32 = 22;
const ZSTD_LEVEL: i32 = 3;

/// A content coding (RFC 9110, section 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encoding {
    /// None.
    #[default]
    Identity,
    /// Zstandard (RFC 8878).
    Zstd,
    /// gzip (RFC 1952).
    Gzip,
    /// Brotli (RFC 7932).
    Brotli,
    /// zlib (RFC 1950).
    Deflate,
}

/// Those that are offered; where several are liked alike, the cheapest for what it saves.
const OFFERED: [Encoding; 4] = [Encoding::Zstd, Encoding::Gzip, Encoding::Brotli, Encoding::Deflate];

impl Encoding {
    /// What an `Accept-Encoding` header asks for.
    pub(crate) fn accepted(accept_encoding: &str) -> Self {
        let items: Vec<_> = accept_encoding
            .split(',')
            .map(|item| {
                let mut parts = item.split(';').map(str::trim);
                (parts.next().unwrap_or_default(), quality(parts))
            })
            .collect();
        let liked = |name: &str| items.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        // What is not named is liked as `*` is; nobody asks for a coding by naming none.
        let like = |encoding: Self| liked(encoding.name()).or_else(|| liked("*")).map_or(0.0, |(_, q)| *q);
        let identity = liked("identity").map_or(0.0, |(_, q)| *q);
        let mut best = (Self::Identity, identity);
        for encoding in OFFERED {
            let q = like(encoding);
            if q > 0.0 && (q > best.1 || best.0 == Self::Identity && q >= best.1) {
                best = (encoding, q);
            }
        }
        best.0
    }

    /// Its name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Deflate => "deflate",
        }
    }

    /// Encodes a body.
    ///
    /// # Errors
    /// Those of the libraries; writing to memory gives them no reason.
    pub(crate) fn encode(self, body: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Identity => Ok(body),
            Self::Zstd => zstd::encode_all(&*body, ZSTD_LEVEL),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&body)?;
                encoder.finish()
            }
            Self::Brotli => {
                let mut encoded = Vec::new();
                let mut encoder =
                    brotli::CompressorWriter::new(&mut encoded, 4096, BROTLI_QUALITY, BROTLI_WINDOW);
                encoder.write_all(&body)?;
                encoder.flush()?;
                drop(encoder);
                Ok(encoded)
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&body)?;
                encoder.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_best_liked_coding_is_chosen() {
        for (accept, expected) in [
            ("", Encoding::Identity),
            ("identity", Encoding::Identity),
            ("snappy", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("GZIP;q=0.5, br;q=0.8", Encoding::Brotli),
            ("gzip, deflate, br, zstd", Encoding::Zstd),
            ("deflate;q=1.0, *;q=0.5", Encoding::Deflate),
            ("*", Encoding::Zstd),
            ("*, zstd;q=0", Encoding::Gzip),
            ("gzip;q=0", Encoding::Identity),
            ("identity;q=1, gzip;q=0.5", Encoding::Identity),
            ("gzip;q=nonsense", Encoding::Identity),
        ] {
            assert_eq!(Encoding::accepted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same() {
        let body: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 1000).to_string().into_bytes()).collect();
        for encoding in OFFERED {
            let encoded = encoding.encode(body.clone()).unwrap();
            assert!(encoded.len() < body.len() / 2, "{encoding:?}: {}", encoded.len());
            let mut decoded = Vec::new();
            match encoding {
                Encoding::Identity => unreachable!(),
                Encoding::Zstd => decoded = zstd::decode_all(&*encoded).unwrap(),
                Encoding::Gzip => {
                    flate2::read::GzDecoder::new(&*encoded).read_to_end(&mut decoded).map(drop).unwrap()
                }
                Encoding::Brotli => {
                    brotli::Decompressor::new(&*encoded, 4096).read_to_end(&mut decoded).map(drop).unwrap()
                }
                Encoding::Deflate => {
                    flate2::read::ZlibDecoder::new(&*encoded).read_to_end(&mut decoded).map(drop).unwrap()
                }
            }
            assert!(decoded == body, "{encoding:?}");
        }
    }
}
