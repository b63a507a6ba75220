//! Tokens and keys.

/// A token or key. `Debug` shows only its prefix; expose it on purpose, and never to compare it: that has one way, here.
#[derive(Clone, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this was given, blanks around the secret aside. Takes a time that depends only on the length of what was
    /// given; a blank secret is never right.
    pub fn is(&self, given: &str) -> bool {
        let own = self.0.trim();
        !own.is_empty() && same(given.as_bytes(), own.as_bytes())
    }

    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }
}

/// The one comparison of secrets: how long it takes says nothing about where they differ.
fn same(given: &[u8], own: &[u8]) -> bool {
    let mut difference = given.len() ^ own.len();
    for (at, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ own.get(at % own.len().max(1)).unwrap_or(&0));
    }
    std::hint::black_box(difference) == 0
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        same(other.0.as_bytes(), self.0.as_bytes())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: String = self.0.chars().take(3).collect();
        write!(f, "Secret({shown}…)")
    }
}
