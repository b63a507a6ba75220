//! An error that ends the process, with its causes.

/// Printed as `Error: <message>`, then the causes, numbered when there are more than one.
#[derive(Debug)]
pub struct Fatal {
    message: String,
    causes: Vec<String>,
}

impl Fatal {
    pub fn new(message: impl Into<String>) -> Fatal {
        Fatal { message: message.into(), causes: Vec::new() }
    }

    pub fn because(mut self, cause: impl std::fmt::Display) -> Fatal {
        self.causes.push(cause.to_string());
        self
    }

    /// The text for stderr, without secrets.
    pub fn report(&self) -> String {
        let mut text = format!("Error: {}", self.message);
        if let [cause] = self.causes.as_slice() {
            text.push_str(&format!("\n\nCaused by:\n    {cause}"));
        } else if !self.causes.is_empty() {
            text.push_str("\n\nCaused by:");
            for (number, cause) in self.causes.iter().enumerate() {
                text.push_str(&format!("\n    {number}: {cause}"));
            }
        }
        super::logging::redact(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_numbered_when_there_are_several() {
        assert_eq!(Fatal::new("a").report(), "Error: a");
        assert_eq!(Fatal::new("a").because("b").report(), "Error: a\n\nCaused by:\n    b");
        assert_eq!(Fatal::new("a").because("b").because("c").report(), "Error: a\n\nCaused by:\n    0: b\n    1: c");
    }
}
