//! Limits as people write them.

use std::num::NonZeroU64;
use std::str::FromStr;

use crate::size::{self, SizeError};

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit<T>(pub(super) Option<T>);

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|limit| Self(Some(limit))) }
    }
}

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RateError {
    /// It is no number.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Nothing would ever move.
    #[error("nothing would move at that rate; `pause` has the worker wait")]
    Zero,
}

/// Reads bytes per second: `100M`, `512K`.
pub(super) fn rate(text: &str) -> Result<NonZeroU64, RateError> {
    NonZeroU64::new(size::parse(text)?.0).ok_or(RateError::Zero)
}

/// Reads bytes per second, or `none`.
pub(super) fn rate_limit(text: &str) -> Result<Limit<NonZeroU64>, RateError> {
    if text == "none" { Ok(Limit(None)) } else { rate(text).map(|rate| Limit(Some(rate))) }
}
