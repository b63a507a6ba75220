//! Fresh ids from a seed that arrived at birth: the same seed gives the same history, which lets a simulation replay.

use sha2::{Digest, Sha256};

use crate::sys::ids::{hex, uuid_bytes};

/// A counter hashed with 32 random bytes: not guessable without the seed, never repeated within a life.
pub struct Ids {
    seed: [u8; 32],
    counter: u64,
}

impl Ids {
    pub fn new(seed: [u8; 32]) -> Ids {
        Ids { seed, counter: 0 }
    }

    fn block(&mut self) -> [u8; 16] {
        self.counter += 1;
        let digest = Sha256::new().chain_update(self.seed).chain_update(self.counter.to_be_bytes()).finalize();
        digest[..16].try_into().expect("a SHA-256 digest has 32 bytes")
    }

    /// `prefix` and 32 hexadecimal digits.
    pub fn fresh(&mut self, prefix: &str) -> String {
        format!("{prefix}{}", hex(&uuid_bytes(self.block())))
    }

    /// A fraction in 0..1, for jitter.
    pub fn fraction(&mut self) -> f64 {
        let bytes: [u8; 4] = self.block()[..4].try_into().expect("a block has 16 bytes");
        f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_no_two_are_equal() {
        let (mut a, mut b) = (Ids::new([7; 32]), Ids::new([7; 32]));
        let first = a.fresh("x_");
        assert_eq!(first, b.fresh("x_"));
        assert_ne!(first, a.fresh("x_"));
        assert_eq!(first.len(), 34);
        let f = a.fraction();
        assert!((0.0..1.0).contains(&f), "{f}");
    }
}
