//! Choices on a screen, selected by their labels: where one stands differs from release to release, what it says rarely.

/// Frames that CLIs draw around their questions.
const FRAME: &[char] = &['│', '┃', '║', '|', '╎'];
/// What marks the choice that Enter would take.
const MARKERS: &[char] = &['❯', '>', '›', '●', '◉', '→', '▶', '*'];
/// Words that choices begin with: counted where neither a number nor a marker tells the first one.
const CHOICES: &[&str] = &[
    "yes", "no", "try", "use", "allow", "trust", "don't", "do not", "cancel", "exit", "keep", "deny", "approve", "skip",
];
/// A menu is no longer than this.
const REACH: usize = 12;
/// More steps than that are no menu that we know.
const MOST_STEPS: i32 = 9;

/// One row of a screen, as a choice.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    pub marked: bool,
    pub number: Option<u8>,
    /// Lower case, without marker, number and frame.
    pub label: String,
}

/// Reads a row.
pub fn row(text: &str) -> Row {
    let is_edge = |c: char| c.is_whitespace() || FRAME.contains(&c);
    let inner = text.trim_matches(is_edge);
    let unmarked = inner.strip_prefix(MARKERS).filter(|rest| rest.starts_with(|c: char| c.is_whitespace()));
    let (marked, rest) = (unmarked.is_some(), unmarked.unwrap_or(inner).trim_start());
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let behind = rest[digits..].strip_prefix(['.', ')']).filter(|_| (1..=2).contains(&digits));
    let number = behind.and_then(|_| rest[..digits].parse().ok());
    Row { marked, number, label: behind.unwrap_or(rest).trim().to_lowercase() }
}

impl Row {
    fn is_choice(&self) -> bool {
        self.number.is_some() || CHOICES.iter().any(|word| self.label.starts_with(word))
    }
}

/// Where a wanted choice stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub number: Option<u8>,
    /// Steps down, or up when negative, from the choice that is marked.
    pub steps: i32,
}

/// The choice whose label holds the first of `wanted` that any choice holds. `None`: no such choice, or too far.
pub fn find(screen: &str, wanted: &[&str]) -> Option<Place> {
    let rows: Vec<Row> = screen.lines().map(row).collect();
    let target = wanted
        .iter()
        .find_map(|label| rows.iter().rposition(|row| (row.is_choice() || row.marked) && row.label.contains(label)))?;
    let near = |at: &usize| at.abs_diff(target) <= REACH;
    let marked = (0..rows.len()).filter(|at| rows[*at].marked).filter(near).min_by_key(|at| at.abs_diff(target));
    let number = rows[target].number;
    let steps = match (marked, number) {
        (Some(marked), Some(wanted)) if rows[marked].number.is_some() => {
            i32::from(wanted) - i32::from(rows[marked].number.unwrap_or_default())
        }
        (Some(marked), _) => {
            let (low, high) = (marked.min(target), marked.max(target));
            let between = rows[low..high].iter().filter(|row| !row.label.is_empty()).count() as i32;
            if marked <= target { between } else { -between }
        }
        // Nothing is marked: the first one is taken for it.
        (None, Some(wanted)) => i32::from(wanted) - 1,
        (None, None) => rows[..target].iter().rev().take_while(|row| row.is_choice()).count() as i32,
    };
    (steps.abs() <= MOST_STEPS).then_some(Place { number, steps })
}

/// Whether a numbered choice is marked on the screen, beside another one: the CLI waits for a choice, not for text.
pub fn is_open(screen: &str) -> bool {
    let rows: Vec<Row> = screen.lines().map(row).filter(|row| !row.label.is_empty()).collect();
    let choice = |row: &Row, other: &Row| row.marked && row.number.is_some() && other.number.is_some();
    rows.windows(2).any(|pair| choice(&pair[0], &pair[1]) || choice(&pair[1], &pair[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_without_their_decoration() {
        for (text, marked, number, label) in [
            ("❯ 1. Yes, I trust it", true, Some(1), "yes, i trust it"),
            ("│ ❯ 2) No, exit      │", true, Some(2), "no, exit"),
            ("  Use existing model", false, None, "use existing model"),
            ("> text", true, None, "text"),
            (">text", false, None, ">text"),
            ("2026. a year", false, None, "2026. a year"),
            ("", false, None, ""),
        ] {
            assert_eq!(row(text), Row { marked, number, label: label.into() }, "{text}");
        }
    }

    #[test]
    fn a_marked_number_beside_another_is_a_menu() {
        assert!(is_open("Pick:\n> 1. Red\n  2. Blue"));
        assert!(is_open("Pick:\n  1. Red\n\n❯ 2. Blue"));
        assert!(!is_open("> 1. write a list"));
        assert!(!is_open("1. Red\n2. Blue\n> "));
    }

    #[test]
    fn r2_a_choice_is_found_by_its_label_wherever_it_stands() {
        for (screen, wanted, expected) in [
            ("Trust?\n❯ 1. Yes, I trust\n  2. No, exit", &["yes"][..], Some((Some(1), 0))),
            ("Trust?\n❯ 1. No, exit\n  2. Yes, I trust", &["yes"], Some((Some(2), 1))),
            ("Trust?\n  1. Yes, I trust\n❯ 2. No, exit", &["yes"], Some((Some(1), -1))),
            ("Trust?\n│ ❯ No, exit │\n│          │\n│   Maybe  │\n│   Yes    │", &["yes"], Some((None, 2))),
            ("new model\nTry it\nUse existing", &["existing"], Some((None, 1))),
            ("1. Allow once\n2. Allow for this session", &["for this session", "allow once"], Some((Some(2), 1))),
            ("1. Allow once", &["for this session", "allow once"], Some((Some(1), 0))),
            ("the word yes in a text", &["yes"], None),
            ("1. No", &["yes"], None),
            ("❯ 1. No\n 55. Yes", &["yes"], None),
        ] {
            let found = find(screen, wanted).map(|place| (place.number, place.steps));
            assert_eq!(found, expected, "{screen}");
        }
    }
}
